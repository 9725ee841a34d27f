//! Python's `strftime`, for the directives that chat templates use, on Unix seconds in UTC.
//!
//! Deviation from Python: the time zone is UTC, not the machine's, so that a prompt does not depend on where it was rendered.

use std::fmt::Write;

use chrono::DateTime;
use chrono::format::{Item, StrftimeItems};

/// Formats a time given in seconds since 1970. Unknown directives, and times beyond the calendar, are kept unchanged.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> String {
    let Some(time) = DateTime::from_timestamp(unix_seconds, 0) else {
        return format.to_owned();
    };
    let time = time.naive_utc();
    let mut out = String::with_capacity(format.len() + 16);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let directive = &rest[..directive_len(rest)];
        rest = &rest[directive.len()..];
        match directive {
            // Python's microseconds; chrono has nanoseconds here.
            "%f" => out.push_str("000000"),
            // Python's datetimes without a zone.
            "%Z" | "%z" => {}
            _ => {
                let items = StrftimeItems::new(directive).collect::<Vec<_>>();
                let known = !items.iter().any(|item| matches!(item, Item::Error));
                if !known || write!(out, "{}", time.format_with_items(items.iter())).is_err() {
                    out.push_str(directive);
                }
            }
        }
    }
    out + rest
}

/// Returns the length in bytes of the directive at the start of `text`: a percent sign, glibc's padding (`-`, `_`) and a letter.
fn directive_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let letter = chars.find(|(_, c)| !matches!(c, '-' | '_'));
    letter.map_or(text.len(), |(at, c)| at + c.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Expectations from Python: `datetime.fromtimestamp(t, UTC).replace(tzinfo=None).strftime(...)`.
    #[test]
    fn formats_as_python_does() {
        let all = "%d %b %Y|%A %B %-d|%H:%M:%S|%I %p|%j|%a %y|%F|%%";
        for (t, expected) in [
            (
                0,
                "01 Jan 1970|Thursday January 1|00:00:00|12 AM|001|Thu 70|1970-01-01|%",
            ),
            (
                951_827_696,
                "29 Feb 2000|Tuesday February 29|12:34:56|12 PM|060|Tue 00|2000-02-29|%",
            ),
            (
                1_735_689_599,
                "31 Dec 2024|Tuesday December 31|23:59:59|11 PM|366|Tue 24|2024-12-31|%",
            ),
            (
                4_107_542_400,
                "01 Mar 2100|Monday March 1|00:00:00|12 AM|060|Mon 00|2100-03-01|%",
            ),
            (
                -1,
                "31 Dec 1969|Wednesday December 31|23:59:59|11 PM|365|Wed 69|1969-12-31|%",
            ),
        ] {
            assert_eq!(strftime(all, t), expected);
        }
        for (t, expected) in [
            (0, "00 00 01 1970 70 19  0 12 am 12:00:00 AM  1 1"),
            (
                951_827_696,
                "09 09 09 2000 00 20 12 12 pm 12:34:56 PM 29 29",
            ),
            (
                1_735_689_599,
                "52 53 01 2025 25 20 23 11 pm 11:59:59 PM 31 31",
            ),
            (-1, "52 52 01 1970 70 19 23 11 pm 11:59:59 PM 31 31"),
            (
                1_104_537_600,
                "00 00 53 2004 04 20  0 12 am 12:00:00 AM  1 1",
            ),
            (
                1_230_768_000,
                "00 00 01 2009 09 20  0 12 am 12:00:00 AM  1 1",
            ),
            (
                1_293_840_000,
                "00 00 52 2010 10 20  0 12 am 12:00:00 AM  1 1",
            ),
        ] {
            let weeks = "%U %W %V %G %g %C %k %l %P %r %_d %-e";
            assert_eq!(strftime(weeks, t), expected);
        }
        assert_eq!(strftime("100% %Q %-", 0), "100% %Q %-");
    }
}
