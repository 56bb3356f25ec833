//! Patterns of OpenSSH: `*` and `?` in a text, and lists of them with commas, where `!` takes back.

/// Whether `pattern` fits the whole of `text`. `*` stands for any characters, `?` for one.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut read) = (0, 0);
    // Where to go on when the last `*` takes one byte more.
    let mut again: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                again = Some((at + 1, read));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[read] => {
                at += 1;
                read += 1;
            }
            _ => match again {
                Some((behind, from)) => {
                    again = Some((behind, from + 1));
                    (at, read) = (behind, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// Whether a list of patterns fits: one does, and none with `!` (match_pattern_list of OpenSSH).
pub fn list_fits<'a>(patterns: impl IntoIterator<Item = &'a str>, text: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if fits(pattern, text) => return false,
            Some(_) => {}
            None => found |= fits(pattern, text),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_marks_stand_for_what_openssh_says() {
        for (pattern, text, fit) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "", false),
            ("alice@*", "alice@example.org", true),
            ("alice@*", "malice@example.org", false),
            ("*@example.org", "alice@example.org.evil.net", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a??", "abc", true),
            ("a??", "ab", false),
            ("*a", "aaab", false),
            ("**a**", "xay", true),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
        assert!(list_fits(["*@example.org", "!bob@*"], "alice@example.org"));
        assert!(!list_fits(["*@example.org", "!bob@*"], "bob@example.org"));
        assert!(!list_fits(["!bob@*"], "alice@example.org"));
    }

    /// By recursion, as one would say it.
    fn plainly(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                plainly(&pattern[1..], text) || (!text.is_empty() && plainly(pattern, &text[1..]))
            }
            (Some(&one), Some(&other)) => (one == b'?' || one == other) && plainly(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_plain_way(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(fits(&pattern, &text), plainly(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
