//! The log on stderr: for people, or one JSON object a line. One fault that repeats does not flood
//! it, and what others said neither ends a line nor does something to a terminal.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, IsTerminal as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use os::clock::Clock;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

use crate::{
    cli::Global,
    terminal::{plain, plain_json},
};

/// Starts the log; `GINNEL_LOG` overrides the flags with a filter such as `ginnel=trace`.
pub(crate) fn start(global: &Global) {
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        3.. => "trace",
    };
    let filter = EnvFilter::try_from_env("GINNEL_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    if global.log_json {
        log.json().map_event_format(Limited::json).init();
    } else {
        let log = log.with_target(false).fmt_fields(PlainFields);
        log.map_event_format(Limited::text).init();
    }
}

/// Events of one place in the code that are written in a [`WINDOW`]; what is more is counted. Who
/// asks for DEBUG or TRACE gets all.
const EVENTS_MAX: u64 = 100;

const WINDOW: Duration = Duration::from_secs(10);

/// Writes events as `F` does, within the bound.
struct Limited<F> {
    format: F,
    json: bool,
    state: Mutex<(Clock, Windows)>,
}

/// Writes fields for people, with escapes for the letters that would do something to a terminal.
struct PlainFields;

struct Visitor<'a> {
    writer: Writer<'a>,
    is_first: bool,
    result: fmt::Result,
}

impl<'a> FormatFields<'a> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut visitor = Visitor {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_err() {
            return;
        }
        let pad = if self.is_first { "" } else { " " };
        self.is_first = false;
        let value = format!("{value:?}");
        let value = plain(&value);
        self.result = match field.name() {
            "message" => write!(self.writer, "{pad}{}", *value),
            name => write!(self.writer, "{pad}{name}={}", *value),
        };
    }
}

/// What was written lately, by the place in the code: as many as the program has.
#[derive(Default)]
struct Windows(BTreeMap<Place, Window>);

type Place = (&'static str, Option<u32>);

struct Window {
    began: Instant,
    events: u64,
}

impl<F> Limited<F> {
    fn text(format: F) -> Self {
        Self::new(format, false)
    }

    fn json(format: F) -> Self {
        Self::new(format, true)
    }

    fn new(format: F, json: bool) -> Self {
        Self {
            format,
            json,
            state: Mutex::new((Clock::start(), Windows::default())),
        }
    }

    /// Returns how many events of the same place were left out before this one; `None` when this
    /// one is left out too.
    fn admit(&self, metadata: &Metadata<'static>) -> Option<u64> {
        if *metadata.level() > Level::INFO {
            return Some(0);
        }
        let place = (metadata.target(), metadata.line());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (clock, windows) = &mut *state;
        windows.admit(clock.now(), place)
    }

    fn tell(&self, writer: &mut Writer<'_>, target: &str, count: u64) -> fmt::Result {
        if self.json {
            writer.write_str("{\"timestamp\":\"")?;
            SystemTime.format_time(writer)?;
            write!(writer, "\",\"level\":\"WARN\",\"fields\":{{\"message\":")?;
            write!(
                writer,
                "\"messages were left out\",\"count\":{count}}},\"target\":"
            )?;
            return writeln!(writer, "\"{target}\"}}");
        }
        SystemTime.format_time(writer)?;
        writeln!(
            writer,
            "  WARN {count} messages like the next were left out"
        )
    }
}

impl Windows {
    fn admit(&mut self, now: Instant, place: Place) -> Option<u64> {
        let fresh = Window {
            began: now,
            events: 0,
        };
        let window = self.0.entry(place).or_insert(fresh);
        let mut left_out = 0;
        if now.saturating_duration_since(window.began) >= WINDOW {
            left_out = window.events.saturating_sub(EVENTS_MAX);
            *window = Window {
                began: now,
                events: 0,
            };
        }
        window.events += 1;
        (window.events <= EVENTS_MAX).then_some(left_out)
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.admit(event.metadata()) {
            None => Ok(()),
            Some(left_out) => {
                if left_out > 0 {
                    self.tell(&mut writer, event.metadata().target(), left_out)?;
                }
                if !self.json {
                    return self.format.format_event(context, writer, event);
                }
                let mut text = String::new();
                let written = Writer::new(&mut text);
                self.format.format_event(context, written, event)?;
                writer.write_str(&plain_json(&text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use super::*;

    #[test]
    fn what_repeats_is_left_out_and_counted_and_other_places_are_not() {
        let mut windows = Windows::default();
        let begin = Clock::start().now();
        for _ in 0..EVENTS_MAX {
            assert_eq!(windows.admit(begin, ("a", Some(1))), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(windows.admit(begin + WINDOW / 2, ("a", Some(1))), None);
        }
        assert_eq!(windows.admit(begin + WINDOW / 2, ("a", Some(2))), Some(0));
        assert_eq!(windows.admit(begin + WINDOW, ("a", Some(1))), Some(7));
        assert_eq!(windows.admit(begin + WINDOW, ("a", Some(1))), Some(0));
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_one_warning_is_bounded_in_both_forms_and_every_line_is_whole() {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let log = log.json().map_event_format(Limited::json).finish();
        tracing::subscriber::with_default(log, || {
            for number in 0..1_000 {
                tracing::warn!(number, "again");
            }
            tracing::info!("another");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(u64::try_from(lines.len()).unwrap(), EVENTS_MAX + 1);
        assert_eq!(lines.last().unwrap()["fields"]["message"], "another");

        let limited = Limited::json(());
        let mut told = String::new();
        let tell = limited.tell(&mut Writer::new(&mut told), "ginnel::log", 900);
        tell.unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["fields"]["count"], 900);
        assert!(told["timestamp"].is_string());
    }

    #[test]
    fn what_others_said_ends_no_line_and_does_nothing_to_a_terminal() {
        let hostile = "\r\nginnel ERROR \"forged\"\u{1b}[2J\u{9b}H\u{202e}\u{2028}\u{7}";
        let logged = |json: bool| {
            let written = Written::default();
            let writer = written.clone();
            let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
            let log = log.with_ansi(false);
            let tell = || {
                let error = anyhow::anyhow!("{hostile}").context("outer");
                tracing::warn!(name = hostile, error = %error, error_debug = ?error, "{hostile}");
            };
            if json {
                let log = log.json().map_event_format(Limited::json).finish();
                tracing::subscriber::with_default(log, tell);
            } else {
                let log = log.fmt_fields(PlainFields);
                let log = log.map_event_format(Limited::text).finish();
                tracing::subscriber::with_default(log, tell);
            }
            let bytes = written.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        };
        let [text, json] = [false, true].map(logged);
        for written in [&text, &json] {
            let line = written.strip_suffix('\n').unwrap();
            assert!(!line.contains(model::name::is_deceptive), "{line:?}");
        }
        assert!(text.contains("\\r\\nginnel ERROR"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["fields"]["message"], hostile);
        assert_eq!(value["fields"]["name"], hostile);
    }
}
