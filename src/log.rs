//! The shim's log: lines into the bundle's FIFO, which containerd copies to its own log.
//!
//! Promises: writing never blocks and never fails, whether containerd reads, is
//! stuck, or is gone; lines that do not fit into the FIFO are counted, and the count is
//! logged as soon as there is space. A line is written whole or not at all. Panics reach
//! the log, and so does what the C library or Rust's runtime prints to stderr.
//!
//! A line is logfmt: time, level, message, then the key-values of the call. `id` is the
//! container that the line is about, `exec` the exec if it is about one; a line about the
//! server has the server's id. `namespace` is last. A key without a value is left out.
//!
//! An action that ends has its stderr for a log, of warnings only.
//!
//! Lacks on purpose: backtraces, which cost tens of megabytes in a process that
//! lives on; local time; any buffer.

use std::fmt::{self, Write};
use std::fs::{File, OpenOptions};
use std::io::{self, Stderr, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::kv::{self, Key, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::fcntl::OFlag;

/// Longest line, in bytes: the kernel writes it to a pipe whole or not at all (`PIPE_BUF`).
const MAX_LINE: usize = 4096;

/// Longest value of a field, and all fields of a line but `id`, `exec` and `namespace`, in
/// bytes, quotes and escapes included. A longer value is cut, a field that does not fit
/// is left out.
const MAX_VALUE: usize = 512;
const MAX_FIELDS: usize = 1536;

/// The fields of a line about the server.
const NO_FIELDS: Option<(&str, &str)> = None;

static LOGGER: OnceLock<FifoLogger<Stderr>> = OnceLock::new();

/// Sends the process's log to the FIFO at `path`, from level debug on or info, each
/// line with an id, the server's by default, and the namespace. Also makes it the process's stderr,
/// and panics lines of it. Once a process; without the FIFO nothing is changed.
pub fn init(path: &Path, debug: bool, id: &str, namespace: &str) -> io::Result<()> {
    nix::unistd::dup2_stderr(open(path)?)?;
    let logger = LOGGER.get_or_init(|| FifoLogger::new(io::stderr(), id, namespace));
    if log::set_logger(logger).is_ok() {
        log::set_max_level(match debug {
            true => LevelFilter::Debug,
            false => LevelFilter::Info,
        });
        std::panic::set_hook(Box::new(|panic| {
            let what = panic.payload_as_str().unwrap_or("no text");
            match panic.location() {
                Some(at) => log::error!("panic at {}:{}: {what}", at.file(), at.line()),
                None => log::error!("panic: {what}"),
            }
        }));
    }
    Ok(())
}

/// Sends the process's warnings and errors to stderr, which containerd logs when an action
/// ends; nothing less, as containerd takes all of it for warnings. Once a process.
pub fn warn_on_stderr() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// The log of an action that ends.
struct Warnings;

impl Log for Warnings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true // The maximum level has been looked at.
    }

    fn log(&self, record: &Record<'_>) {
        let mut fields = Fields::default();
        // The visitor never fails; without a stderr there is nobody to tell.
        let _ = record.key_values().visit(&mut fields);
        let Fields { id, exec, others } = fields;
        let line = format!("{}: {}{others}{id}{exec}\n", crate::NAME, record.args());
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Opened for reading, too, though this process never reads it: the FIFO always has a reader,
/// so that a restart of containerd causes neither a signal nor an error.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

struct FifoLogger<W> {
    fifo: W,
    /// The server's id, for lines that are not about a container.
    id: String,
    namespace: String,
    dropped: AtomicU64,
}

impl<W> FifoLogger<W>
where
    for<'a> &'a W: io::Write,
{
    fn new(fifo: W, id: &str, namespace: &str) -> Self {
        Self {
            fifo,
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            dropped: AtomicU64::new(0),
        }
    }

    fn line(&self, level: Level, message: fmt::Arguments<'_>, pairs: &dyn kv::Source) {
        let now = SystemTime::now();
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let notice = format_args!("log FIFO was full: {dropped} lines were dropped");
            let fields = self.fields(&NO_FIELDS);
            if !self.write(&format_line(now, Level::Warn, notice, &fields)) {
                self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
                return;
            }
        }
        if !self.write(&format_line(now, level, message, &self.fields(pairs))) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The last part of a line.
    fn fields(&self, pairs: &dyn kv::Source) -> String {
        let mut fields = Fields::default();
        // The visitor never fails.
        let _ = pairs.visit(&mut fields);
        if fields.id.is_empty() {
            add_field(&mut fields.id, "id", &self.id);
        }
        let mut line = fields.others;
        line.push_str(&fields.id);
        line.push_str(&fields.exec);
        add_field(&mut line, "namespace", &self.namespace);
        line
    }

    fn write(&self, line: &str) -> bool {
        (&self.fifo).write_all(line.as_bytes()).is_ok()
    }
}

impl Log for FifoLogger<Stderr> {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true // `log` has compared the maximum level.
    }

    fn log(&self, record: &Record<'_>) {
        self.line(record.level(), *record.args(), record.key_values());
    }

    fn flush(&self) {}
}

/// The fields of a line, as they are written.
#[derive(Default)]
struct Fields {
    id: String,
    exec: String,
    others: String,
}

impl<'a> VisitSource<'a> for Fields {
    fn visit_pair(&mut self, key: Key<'a>, value: kv::Value<'a>) -> Result<(), kv::Error> {
        let value = value.to_string();
        match key.as_str() {
            _ if value.is_empty() => {}
            "id" => add_field(&mut self.id, "id", &value),
            "exec" => add_field(&mut self.exec, "exec", &value),
            key => {
                let before = self.others.len();
                add_field(&mut self.others, key, &value);
                if self.others.len() > MAX_FIELDS {
                    self.others.truncate(before);
                }
            }
        }
        Ok(())
    }
}

fn add_field(fields: &mut String, key: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = write!(fields, " {key}={}", Value(value));
}

/// A line as logrus writes it: containerd's log is written by logrus.
fn format_line(at: SystemTime, level: Level, message: fmt::Arguments<'_>, fields: &str) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut line = String::with_capacity(128 + fields.len());
    // Writing to a String cannot fail.
    let _ = write!(line, "time=\"{}\" level={level} msg=\"", Rfc3339(at));
    let limit = MAX_LINE.saturating_sub(fields.len() + "...\"\n".len());
    let text = &mut line;
    if write!(Escaped { text, limit }, "{message}").is_err() {
        line.push_str("...");
    }
    line.push('"');
    line.push_str(fields);
    line.push('\n');
    line
}

/// Writes text so that it can stand in double quotes; an error, after the last
/// character that fits whole, when it would be longer than `limit`.
struct Escaped<'a> {
    text: &'a mut String,
    limit: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let before = self.text.len();
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\t' => self.text.push_str("\\t"),
                // Go's quoting and JSON's, which logfmt parsers follow, agree on this form.
                c if c.is_control() => write!(self.text, "\\u{:04x}", c as u32)?,
                c => self.text.push(c),
            }
            if self.text.len() > self.limit {
                self.text.truncate(before);
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// A field's value, quoted where it has to be.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
        if (1..=MAX_VALUE).contains(&self.0.len()) && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        let mut quoted = String::new();
        let text = &mut quoted;
        let limit = MAX_VALUE - "\"...\"".len();
        let cut = Escaped { text, limit }.write_str(self.0).is_err();
        write!(f, "\"{quoted}{}\"", if cut { "..." } else { "" })
    }
}

/// A time in UTC, to the nanosecond.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clock before 1970 is wrong anyway.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (year, month, day) = civil_from_days(since.as_secs() / 86400);
        let second = since.as_secs() % 86400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let nanos = since.subsec_nanos();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z"
        )
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that a leap day is the last of its year, and
    // in eras of 400 years, which all have the same number of days.
    const DAYS_FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days + DAYS_FROM_MARCH_OF_YEAR_0;
    let (era, of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, over and over: 153 days in five.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    match month {
        0..10 => (era * 400 + year, month + 3, day),
        _ => (era * 400 + year + 1, month - 9, day),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::io::Read;

    fn at(secs: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(secs, nanos)
    }

    #[test]
    fn times() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_164_799, "2024-02-28T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_735_689_600, "2025-01-01T00:00:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(
                Rfc3339(at(secs, 42)).to_string(),
                format!("{expected}.000000042Z")
            );
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            Rfc3339(before).to_string(),
            "1970-01-01T00:00:00.000000000Z"
        );
    }

    #[test]
    fn consecutive_days() {
        let length = |year: u64, month| match month {
            2 if year.is_multiple_of(4) != year.is_multiple_of(100) || year.is_multiple_of(400) => {
                29
            }
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for day in 0..200_000 {
            assert_eq!(civil_from_days(day), expected);
            expected = match expected {
                (y, 12, 31) => (y + 1, 1, 1),
                (y, m, d) if d == length(y, m) => (y, m + 1, 1),
                (y, m, d) => (y, m, d + 1),
            };
        }
    }

    #[test]
    fn lines_are_as_logrus_writes_them() {
        let line = format_line(
            at(0, 0),
            Level::Warn,
            format_args!("a \"b\" \\ {}\n\x07é", 5),
            " id=x",
        );
        assert_eq!(
            line,
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warning \
             msg=\"a \\\"b\\\" \\\\ 5\\n\\u0007é\" id=x\n"
        );
    }

    #[test]
    fn long_lines_are_truncated_at_a_character() {
        for text in ["x", "é", "\"", "\\", "\x07", "€\\"] {
            for shift in 0..4 {
                let message = format!("{}{}", "a".repeat(shift), text.repeat(5000));
                let line = format_line(at(0, 0), Level::Info, format_args!("{message}"), " id=x");
                assert!(line.len() <= MAX_LINE);
                assert!(line.len() > MAX_LINE - 8);
                let body = line.strip_suffix("...\" id=x\n").unwrap();
                let escapes = body.chars().rev().take_while(|c| *c == '\\').count();
                assert!(escapes % 2 == 0, "{text:?} {shift}");
            }
        }
    }

    #[test]
    fn values_are_quoted_if_necessary() {
        assert_eq!(Value("k8s.io").to_string(), "k8s.io");
        assert_eq!(Value("a b\"").to_string(), r#""a b\"""#);
        assert_eq!(Value("").to_string(), r#""""#);
    }

    /// The pairs of a line, by the grammar of logfmt: keys without quotes, values bare or
    /// as JSON strings. Panics where a parser of logfmt would refuse or misread the line.
    fn parse(line: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let mut rest = line.strip_suffix('\n').expect("a line has an end");
        assert!(rest.chars().all(|c| !c.is_control()), "{rest:?}");
        while !rest.is_empty() {
            let (key, value) = rest.split_once('=').expect("a key has a value");
            let is_bare = |c: char| c > ' ' && c != '"' && c != '=';
            assert!(!key.is_empty() && key.chars().all(is_bare), "{key:?}");
            let length = match value.starts_with('"') {
                false => value.find(' ').unwrap_or(value.len()),
                true => {
                    let mut escaped = false;
                    let ends = |c| match (c, std::mem::take(&mut escaped)) {
                        ('\\', false) => {
                            escaped = true;
                            false
                        }
                        (c, was_escaped) => c == '"' && !was_escaped,
                    };
                    2 + value[1..].find(ends).expect("a quoted value has an end")
                }
            };
            let (value, after) = value.split_at(length);
            let value = match value.starts_with('"') {
                true => serde_json::from_str(value).expect("a quoted value is a JSON string"),
                false => {
                    assert!(!value.is_empty() && value.chars().all(is_bare), "{value:?}");
                    value.to_owned()
                }
            };
            pairs.push((key.to_owned(), value));
            rest = after;
            if !rest.is_empty() {
                rest = rest.strip_prefix(' ').expect("a space between pairs");
                assert!(!rest.is_empty(), "a space before the end");
            }
        }
        pairs
    }

    const ODD_TEXTS: [&str; 12] = [
        "c1",
        "a b",
        "a=b",
        "\"",
        "\\",
        "\\\"",
        "line\nlevel=error msg=forged",
        "\r\t\0\x1b[31m\x7f\u{85}",
        "é€😀",
        "\u{202e}\u{2028}",
        "'single' `back`",
        "=",
    ];

    #[test]
    fn any_line_parses_as_logfmt() {
        let logger = FifoLogger::new(io::empty(), "server 1", "k8s.io");
        for text in ODD_TEXTS {
            let pairs = [("path", text), ("exec", text), ("id", text)];
            let line = format_line(
                at(0, 0),
                Level::Info,
                format_args!("{text}"),
                &logger.fields(&pairs),
            );
            let expected = [
                ("time", "1970-01-01T00:00:00.000000000Z"),
                ("level", "info"),
                ("msg", text),
                ("path", text),
                ("id", text),
                ("exec", text),
                ("namespace", "k8s.io"),
            ];
            let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
            assert_eq!(parse(&line), expected, "{line}");
        }
    }

    #[test]
    fn line_without_an_id_has_the_servers_id() {
        let logger = FifoLogger::new(io::empty(), "server 1", "n");
        for pairs in [&[][..], &[("id", ""), ("exec", "")]] {
            assert_eq!(logger.fields(&pairs), " id=\"server 1\" namespace=n");
        }
    }

    #[test]
    fn long_fields_are_truncated() {
        let logger = FifoLogger::new(io::empty(), "s", "n");
        for text in ["x", "é", "\"", "\\", "\x07", " "] {
            let long = text.repeat(5000);
            let mut pairs = vec![("id", long.as_str()), ("exec", &long)];
            pairs.extend([("path", long.as_str()); 8]);
            let fields = logger.fields(&pairs.as_slice());
            let line = format_line(at(0, 0), Level::Info, format_args!("{long}"), &fields);
            assert!(line.len() <= MAX_LINE, "{}", line.len());
            let pairs = parse(&line);
            for key in ["msg", "id", "exec"] {
                let (_, value) = pairs.iter().find(|(found, _)| found == key).unwrap();
                assert!(value.starts_with(text) && value.ends_with("..."), "{value}");
            }
            assert_eq!(pairs.last().unwrap().0, "namespace");
        }
    }

    fn fifo() -> (tempfile::TempDir, FifoLogger<File>, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let logger = FifoLogger::new(open(&path).unwrap(), "c1", "ns");
        let reader = open(&path).unwrap();
        (dir, logger, reader)
    }

    fn read_all(reader: &mut File) -> String {
        let mut text = Vec::new();
        let end = reader.read_to_end(&mut text).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn line_is_written_to_the_fifo() {
        let (_dir, logger, mut reader) = fifo();
        logger.line(Level::Info, format_args!("hello"), &NO_FIELDS);
        let text = read_all(&mut reader);
        assert!(
            text.ends_with(" level=info msg=\"hello\" id=c1 namespace=ns\n"),
            "{text}"
        );
    }

    #[test]
    fn dropped_lines_are_counted() {
        let (_dir, logger, mut reader) = fifo();
        let written = 5000;
        for n in 0..written {
            logger.line(Level::Info, format_args!("line {n}"), &NO_FIELDS);
        }
        let dropped = logger.dropped.load(Ordering::Relaxed);
        assert!(dropped > 0);
        let text = read_all(&mut reader);
        assert_eq!(text.lines().count() as u64, written - dropped);
        assert!(text.lines().all(|l| l.ends_with(" namespace=ns")));

        logger.line(Level::Info, format_args!("again"), &NO_FIELDS);
        let text = read_all(&mut reader);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains(&format!("full: {dropped} lines were dropped")));
        assert!(lines[1].contains("again"));
        assert_eq!(lines.len(), 2);
        assert_eq!(logger.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn missing_fifo_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("log")).is_err());
    }
}
