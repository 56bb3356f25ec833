//! `ravelin bans`, `ban` and `unban`: who is shut out, until when, and why.

use super::Style;
use super::diff::ends;
use super::human::{duration, number, utc};
use super::table::{cut, left, right, table};
use crate::api::types::{BanList, BanRow, Banned, Unbanned};
use comfy_table::Cell;
use std::time::Duration;

/// Renders the list; `now` in Unix seconds, for ages.
pub fn bans(list: &BanList, now: u64, style: &Style) -> String {
    let remembered = match list.remembered {
        0 => String::new(),
        count => format!(", {} over and remembered", number(count)),
    };
    let mut out = format!(
        "{} of {} bans{remembered}\n",
        number(list.bans.len() as u64),
        number(list.max)
    );
    if list.bans.is_empty() {
        return out;
    }
    let columns = [
        left("PREFIX"),
        right("SINCE"),
        right("LEFT"),
        left("BY"),
        right("STRIKES"),
        cut("WHY"),
    ];
    let rows = list.bans.iter().map(|row| {
        vec![
            Cell::new(&row.prefix),
            Cell::new(format!("{} ago", span(now.saturating_sub(row.since)))),
            Cell::new(row.seconds_left.map_or("for ever".to_owned(), span)),
            Cell::new(by(row)),
            Cell::new(match row.strikes {
                0 => "-".to_owned(),
                strikes => number(strikes.into()),
            }),
            Cell::new(match row.why.as_str() {
                "" => "-",
                why => why,
            }),
        ]
    });
    out.push('\n');
    out.push_str(&table(style, &columns, rows));
    out
}

/// What came of a command; `now` in Unix seconds.
pub fn banned(record: &Banned, now: u64, style: &Style) -> String {
    let BanRow { prefix, until, .. } = &record.ban;
    let mut out = style.good(&format!("{prefix} is banned"));
    out += &match until {
        None => format!(" for ever; `ravelin unban {prefix}` ends it\n"),
        Some(until) => format!(", {}", ends(*until, now)),
    };
    if let Some(before) = &record.before {
        let until = before
            .until
            .map_or("for ever".to_owned(), |until| format!("until {}", utc(until)));
        let kept = !before.why.is_empty() && before.why == record.ban.why;
        let reason = if kept { ", and keeps its reason" } else { "" };
        out += &format!("it takes the place of a ban {until} by {}{reason}\n", by(before));
    }
    out
}

/// What came of a command.
pub fn unbanned(record: &Unbanned) -> String {
    match &record.unbanned[..] {
        [] => "nothing was banned\n".to_owned(),
        [one] => format!("{} is not banned any more\n", one.prefix),
        many => format!("{} bans are over\n", number(many.len() as u64)),
    }
}

/// For an explanation.
pub fn ban_sentence(row: &BanRow) -> String {
    let until = match (row.until, row.seconds_left) {
        (Some(until), Some(left)) => format!("until {} ({} left)", utc(until), span(left)),
        _ => "for ever".to_owned(),
    };
    let why = match row.why.as_str() {
        "" => String::new(),
        why => format!(": {why}"),
    };
    format!("{} is banned {until}, by {}{why}", row.prefix, by(row))
}

fn by(row: &BanRow) -> String {
    match row.service.as_str() {
        "" => "the operator".to_owned(),
        service => format!("service {service}"),
    }
}

fn span(seconds: u64) -> String {
    duration(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> BanRow {
        BanRow {
            prefix: "203.0.113.0/24".into(),
            since: 1_795_309_396,
            until: Some(1_795_312_996),
            seconds_left: Some(3_500),
            origin: "operator".into(),
            why: "scans, ticket 7".into(),
            ..BanRow::default()
        }
    }

    #[test]
    fn bans_are_listed_with_who_asked_for_them() {
        let automatic = BanRow {
            prefix: "2001:db8:1::/64".into(),
            until: None,
            seconds_left: None,
            service: "api".into(),
            strikes: 3,
            why: String::new(),
            ..row()
        };
        let list = BanList {
            max: 65_536,
            remembered: 1_204,
            bans: vec![row(), automatic],
        };
        assert_eq!(
            bans(&list, 1_795_309_496, &Style::PLAIN),
            "\
2 of 65,536 bans, 1,204 over and remembered

PREFIX                SINCE      LEFT  BY            STRIKES  WHY
203.0.113.0/24   1m 40s ago   58m 20s  the operator        -  scans, ticket 7
2001:db8:1::/64  1m 40s ago  for ever  service api         3  -
"
        );
        let empty = BanList {
            max: 16,
            ..BanList::default()
        };
        assert_eq!(bans(&empty, 0, &Style::PLAIN), "0 of 16 bans\n");
    }

    #[test]
    fn a_reason_is_cut_where_the_terminal_ends() {
        let mut style = Style::PLAIN;
        let long = BanRow {
            why: "one word after another ".repeat(8),
            ..row()
        };
        let list = BanList {
            max: 16,
            bans: vec![long, row()],
            ..BanList::default()
        };
        assert!(bans(&list, 1_795_309_496, &style).contains(list.bans[0].why.trim_end()));
        style.width = Some(100);
        let text = bans(&list, 1_795_309_496, &style);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(
            text.contains("one word after") && text.contains('…') && text.contains("scans, ticket 7\n"),
            "{text}"
        );
    }

    #[test]
    fn a_command_tells_until_when_and_what_was_before() {
        let done = Banned {
            ban: row(),
            before: None,
            kept: true,
        };
        assert_eq!(
            banned(&done, 1_795_309_496, &Style::PLAIN),
            "203.0.113.0/24 is banned, ends 02:03:16 UTC\n"
        );
        let ever = Banned {
            ban: BanRow { until: None, ..row() },
            before: Some(row()),
            kept: true,
        };
        assert_eq!(
            banned(&ever, 1_795_309_496, &Style::PLAIN),
            "203.0.113.0/24 is banned for ever; `ravelin unban 203.0.113.0/24` ends it\n\
             it takes the place of a ban until 2026-11-22 02:03:16 UTC by the operator, and keeps its reason\n"
        );
        assert_eq!(
            ban_sentence(&row()),
            "203.0.113.0/24 is banned until 2026-11-22 02:03:16 UTC (58m 20s left), by the operator: scans, ticket 7"
        );
        let one = Unbanned {
            unbanned: vec![row()],
        };
        assert_eq!(unbanned(&one), "203.0.113.0/24 is not banned any more\n");
    }
}
