//! The end of a temporary entry: a TOML date and time with an offset, and unix seconds.

use toml_edit::{Date, Datetime, Offset, Time};

const DAY: i64 = 86_400;

/// Unix seconds; `None` without date, time or offset, or before 1970.
pub fn to_unix(at: &Datetime) -> Option<u64> {
    let (date, time, offset) = (at.date?, at.time?, at.offset?);
    let offset = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes) * 60,
    };
    let clock =
        i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
    let days = days_from_civil(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    u64::try_from(days * DAY + clock - offset).ok()
}

/// In UTC; `None` past the year 9999.
pub fn from_unix(seconds: u64) -> Option<Datetime> {
    let seconds = i64::try_from(seconds).ok()?;
    let (year, month, day) = civil_from_days(seconds / DAY);
    let clock = seconds % DAY;
    Some(Datetime {
        date: Some(Date {
            year: u16::try_from(year).ok().filter(|&year| year <= 9999)?,
            month,
            day,
        }),
        time: Some(Time {
            hour: (clock / 3600) as u8,
            minute: (clock / 60 % 60) as u8,
            second: Some((clock % 60) as u8),
            nanosecond: None,
        }),
        offset: Some(Offset::Z),
    })
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. The year runs from March, so that the leap day
/// is its last; 400 years have 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (
        era * 400 + year_of_era + i64::from(month <= 2),
        month as u8,
        day as u8,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn knows_leap_days_and_offsets() {
        let unix = |text: &str| to_unix(&text.parse().unwrap());
        assert_eq!(unix("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix("2026-11-22T05:00:00Z"), Some(1_795_323_600));
        assert_eq!(unix("2026-11-22T05:00:00+01:30"), Some(1_795_323_600 - 5400));
        assert_eq!(unix("2024-02-29T23:59:59Z"), Some(1_709_251_199));
        assert_eq!(unix("2026-11-22T05:00:00"), None);
        assert_eq!(unix("2026-11-22"), None);
        assert_eq!(unix("1969-12-31T23:59:59Z"), None);
        assert_eq!(
            from_unix(1_795_323_600).unwrap().to_string(),
            "2026-11-22T05:00:00Z"
        );
        assert_eq!(from_unix(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn seconds_come_back(seconds in 0u64..253_402_300_800) {
            let text = from_unix(seconds).unwrap().to_string();
            prop_assert_eq!(to_unix(&text.parse().unwrap()), Some(seconds));
        }
    }
}
