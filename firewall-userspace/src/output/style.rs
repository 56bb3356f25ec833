//! Colour, and whether there is any.

use std::io::IsTerminal;

/// How text is dressed: colours on a terminal, none elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    colour: bool,
    /// Columns of the terminal; tables wrap to it. `None`: lines are as long as they need.
    pub width: Option<u16>,
}

impl Style {
    /// No colour, no wrapping: what a pipe gets.
    pub const PLAIN: Style = Style {
        colour: false,
        width: None,
    };

    /// As an output stream allows: colours on a terminal unless `NO_COLOR` (<https://no-color.org>) or `TERM=dumb`
    /// says otherwise.
    pub fn of(stream: &impl IsTerminal) -> Style {
        if !stream.is_terminal() {
            return Style::PLAIN;
        }
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Style {
            colour: !refused,
            width: comfy_table::Table::new().width(),
        }
    }

    pub fn colour(&self) -> bool {
        self.colour
    }

    fn dress(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub fn good(&self, text: &str) -> String {
        self.dress("32", text)
    }

    pub fn warn(&self, text: &str) -> String {
        self.dress("33", text)
    }

    pub fn bad(&self, text: &str) -> String {
        self.dress("31", text)
    }

    pub fn bold(&self, text: &str) -> String {
        self.dress("1", text)
    }

    pub fn dim(&self, text: &str) -> String {
        self.dress("2", text)
    }

    /// `pass` is good, `drop` bad, anything else a warning.
    pub fn verdict(&self, verdict: &str, text: &str) -> String {
        match verdict {
            "pass" => self.good(text),
            "drop" => self.bad(text),
            _ => self.warn(text),
        }
    }
}
