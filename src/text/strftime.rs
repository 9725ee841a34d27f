//! Python's `strftime`, for the directives that chat templates use, on Unix seconds in UTC.
//!
//! Deviation from Python: the time zone is UTC, not the machine's, so that a prompt does not depend on where it was rendered.

use std::fmt::Write;

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a time given in seconds since 1970. Unknown directives are kept unchanged.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> String {
    let days = unix_seconds.div_euclid(86_400);
    let second_of_day = unix_seconds.rem_euclid(86_400);
    let (hour, minute, second) = (
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    );
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7); // 1970 began on a Thursday
    let day_of_year = days - days_before(year) + 1;
    let hour12 = (hour + 11) % 12 + 1;
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[weekday as usize]);

    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's "%-d" and "%_d"
        let padding = directive.filter(|c| matches!(c, '-' | '_'));
        if padding.is_some() {
            directive = chars.next();
        }
        let unpadded = padding == Some('-');
        // Writing to a String does not fail.
        let mut number = |value: i64, width: usize| {
            let _ = match padding {
                Some('-') => write!(out, "{value}"),
                Some(_) => write!(out, "{value:width$}"),
                None => write!(out, "{value:0width$}"),
            };
        };
        let (iso_year, iso_week) = iso_week(year, day_of_year, weekday);
        match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year, 3),
            Some('f') => number(0, 6),
            Some('w') => number(weekday, 1),
            Some('u') => number((weekday + 6) % 7 + 1, 1),
            Some('s') => number(unix_seconds, 1),
            Some('C') => number(year.div_euclid(100), 2),
            // Weeks that begin on Sunday, and on Monday; days before the first such week are in week 0.
            Some('U') => number((day_of_year + 6 - weekday) / 7, 2),
            Some('W') => number((day_of_year + 6 - (weekday + 6) % 7) / 7, 2),
            Some('V') => number(iso_week, 2),
            Some('G') => number(iso_year, 4),
            Some('g') => number(iso_year.rem_euclid(100), 2),
            Some(c @ ('e' | 'k' | 'l')) => {
                let value = match c {
                    'e' => day,
                    'k' => hour,
                    _ => hour12,
                };
                let _ = match unpadded {
                    true => write!(out, "{value}"),
                    false => write!(out, "{value:2}"),
                };
            }
            Some('P') => out.push_str(if hour < 12 { "am" } else { "pm" }),
            Some('r') => out.push_str(&strftime("%I:%M:%S %p", unix_seconds)),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", unix_seconds)),
            Some('T' | 'X') => out.push_str(&strftime("%H:%M:%S", unix_seconds)),
            Some('D' | 'x') => out.push_str(&strftime("%m/%d/%y", unix_seconds)),
            Some('R') => out.push_str(&strftime("%H:%M", unix_seconds)),
            Some('c') => out.push_str(&strftime("%a %b %e %H:%M:%S %Y", unix_seconds)),
            Some('Z') => {} // Python's naive datetimes have no zone
            Some('z') => {}
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(padding);
                out.extend(other);
            }
        }
    }
    out
}

/// Returns the year and the number of a day's week, by ISO 8601. `weekday`: 0 is Sunday.
fn iso_week(year: i64, day_of_year: i64, weekday: i64) -> (i64, i64) {
    let weeks_in = |year: i64| {
        let first = (days_before(year) + 4).rem_euclid(7);
        let leap = days_before(year + 1) - days_before(year) == 366;
        // A year that begins on a Thursday, or a leap year that begins on a Wednesday.
        if first == 4 || leap && first == 3 {
            53
        } else {
            52
        }
    };
    let week = (day_of_year - (weekday + 6) % 7 + 9) / 7;
    match week {
        0 => (year - 1, weeks_in(year - 1)),
        week if week > weeks_in(year) => (year + 1, 1),
        week => (year, week),
    }
}

/// Returns the days from 1970 to the first of January of a year.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    365 * (year - 1970) + (past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)) - 477
}

/// Returns year, month (1 to 12) and day of a day counted from 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    // Never too late: years after 1970 have at most 366 days, years before it at least 365.
    let mut year = 1970 + days.div_euclid(if days < 0 { 365 } else { 366 });
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = days_before(year + 1) - days_before(year) == 366;
    let mut day = days - days_before(year);
    let lengths = [
        31,
        28 + i64::from(leap),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
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
