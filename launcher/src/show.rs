//! How things look on a terminal: times, audit lines, tables. Colour only on a terminal, and never with `NO_COLOR`.

use std::io::{IsTerminal, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use terok_policy::audit::Event;
use terok_policy::policy::{Shield, Source};

/// What a colour means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Let through, fine.
    Good,
    /// Worth a look.
    Notice,
    /// Refused, broken.
    Bad,
    /// Beside the point.
    Faint,
}

/// Prints a line (`println!` would panic where the reader of a pipe is gone).
pub(crate) fn say(text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_fmt(text)?;
    out.write_all(b"\n")
}

/// `text` in its colour where standard output is a terminal.
pub(crate) fn toned(tone: Tone, text: &str) -> String {
    // https://no-color.org
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || !std::io::stdout().is_terminal();
    let code = match tone {
        _ if plain => return text.to_owned(),
        Tone::Good => 32,
        Tone::Notice => 33,
        Tone::Bad => 31,
        Tone::Faint => 2,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// One audit event as a line: time, kind, action, target, and what there is to say about it.
pub(crate) fn event(event: &Event) -> String {
    let tone = match event.action.as_str() {
        "refuse" | "refused" => Tone::Bad,
        "allow" | "answer" | "grant" | "ready" => Tone::Good,
        "tampered" => Tone::Bad,
        "deny" | "cut" | "state" | "worker-restart" | "wait" | "timeout" => Tone::Notice,
        _ => Tone::Faint,
    };
    let kind = word(&event.kind);
    let action = toned(tone, &format!("{:8}", printable(&event.action)));
    let mut line = format!("{}  {kind:9} {action} {}", time(event.t), printable(&event.target));
    if let Some(reason) = &event.reason {
        line += &format!("  {}", word(reason));
    }
    if !event.rule.is_empty() {
        line += &format!("  by {}", printable(&event.rule));
    }
    if let Some(count) = event.count.filter(|count| *count > 1) {
        line += &format!("  ×{count}");
    }
    let detail: Vec<String> = event
        .detail
        .iter()
        .map(|(key, value)| match (value.as_str(), value.as_u64()) {
            (Some(text), _) => format!("{key}={text}"),
            // Milliseconds since the epoch, for machines: a person compares it with the line's own time.
            (None, Some(until)) if key == "until" => format!("{key}={}", time(until)),
            _ => format!("{key}={value}"),
        })
        .collect();
    if !detail.is_empty() {
        line += &toned(Tone::Faint, &format!("  {}", printable(&detail.join(" "))));
    }
    line
}

/// The JSON name of a word of the contract.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The state in its colour.
pub(crate) fn shield(state: Shield) -> String {
    let tone = match state {
        Shield::Up => Tone::Good,
        Shield::Down => Tone::Bad,
        Shield::Block => Tone::Notice,
    };
    toned(tone, &word(&state))
}

/// Where a rule comes from.
pub(crate) fn source(source: &Source) -> String {
    match source {
        Source::Annotation => "annotation".to_owned(),
        Source::Profile(name) => format!("profile {name}"),
        Source::Provider(name) => format!("provider {name}"),
        Source::Live => "live".to_owned(),
    }
}

/// Unix milliseconds as `2026-01-02T03:04:05.678Z`.
pub(crate) fn time(ms: u64) -> String {
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to civil date, after Howard Hinnant's chrono-compatible algorithms; years from 1970 on.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// Unix seconds as `2026-01-02`.
pub(crate) fn day(seconds: u64) -> String {
    time(seconds.saturating_mul(1000)).split('T').next().unwrap_or_default().to_owned()
}

/// A span as its two largest units: `3d 4h`, `5m 2s`.
pub(crate) fn span(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let from = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    let shown = parts[from..].iter().take(2).filter(|(n, unit)| *n > 0 || *unit == "s" && from == 3);
    shown.map(|(n, unit)| format!("{n}{unit}")).collect::<Vec<_>>().join(" ")
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// `90s`, `10m`, `1h30m`, `2d`; more than nothing, and at most a year.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time as 90s, 10m, 1h30m or 2d, a year at most".to_owned();
    let mut total = 0u64;
    let mut digits = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let n: u64 = digits.parse().map_err(|_| wrong())?;
        total = n.checked_mul(unit).and_then(|n| n.checked_add(total)).ok_or_else(wrong)?;
        digits.clear();
    }
    if !digits.is_empty() || total == 0 || total > 366 * 86_400 {
        return Err(wrong());
    }
    Ok(Duration::from_secs(total))
}

/// Whatever a container wrote into a name must not reach the terminal as an escape sequence.
pub(crate) fn printable(text: &str) -> String {
    // Beside control characters those that change the order in which others are shown.
    let order = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || order(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_moves_the_cursor_or_turns_the_line() {
        assert_eq!(printable("a\x1b[2J\u{9b}b\u{202e}c\n"), "a\u{fffd}[2J\u{fffd}b\u{fffd}c\u{fffd}");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(time(1_795_217_943_007), "2026-11-20T23:39:03.007Z");
        assert_eq!(day(1_795_217_943), "2026-11-20");
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "10", "m", "0s", "-5m", "1y", "1h30", "400d", "99999999999999999999s", "1 h"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn spans_show_two_units() {
        assert_eq!(span(0), "0s");
        assert_eq!(span(62), "1m 2s");
        assert_eq!(span(3600), "1h");
        assert_eq!(span(200_000), "2d 7h");
    }

    #[test]
    fn an_event_is_one_line_without_escape_sequences() {
        let text = r#"{"t":0,"kind":"connect","action":"refuse","target":"x\u001b[2J\n.example:443","reason":"port-unlisted","rule":"x (annotation)","count":3,"detail":{"ms":4,"proto":"tcp"}}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert_eq!(
            super::event(&event),
            "1970-01-01T00:00:00.000Z  connect   refuse   x\u{fffd}[2J\u{fffd}.example:443  port-unlisted  by x (annotation)  ×3  ms=4 proto=tcp"
        );
    }
}
