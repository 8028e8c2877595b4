//! Moments for people.

/// A moment in microseconds since 1970 as a date and a time of day.
pub(crate) fn date(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a day, counted from 1970: years of this reckoning begin in March, so that the day that some years have
/// more is their last, and 400 years have 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * era + year + next, month, of_month)
}

/// How long ago a moment was, or will be, by a clock.
pub(crate) fn ago(micros: u64, now: u64) -> String {
    match now.checked_sub(micros) {
        Some(passed) => format!("{} ago", span(passed)),
        None => format!("{} ahead of it", span(micros - now)),
    }
}

fn span(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    match seconds {
        0..120 => format!("{:.1} s", micros as f64 / 1e6),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let date = |seconds: u64| date(seconds * 1_000_000);
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_709_251_199), "2024-02-29 23:59:59 UTC");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00:00 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59:59 UTC");
    }

    #[test]
    fn a_time_that_has_passed_is_said_in_a_fitting_unit() {
        let ago = |seconds: u64| ago(0, seconds * 1_000_000);
        assert_eq!(
            [ago(3), ago(180), ago(7_300), ago(864_000)],
            ["3.0 s ago", "3 min ago", "2 h ago", "10 days ago"]
        );
        assert_eq!(super::ago(2_000_000, 500_000), "1.5 s ahead of it");
    }
}
