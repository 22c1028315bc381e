//! The verdict on a row: what its function says, what is left after it, and whether that is
//! what the table of expectations says.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::expected::{self, Class};
use crate::harness::{Api, Daemon, Shim, apis, hang_timeout, shim, short_hang_timeout};
use crate::left;

/// How a row ended.
pub enum Verdict {
    Fine,
    /// This is left.
    Left(Vec<String>),
    /// This did not come within its time.
    Hangs(String),
    /// This is wrong: an answer, an event, the server's end.
    Fails(String),
}

impl Verdict {
    pub fn class(&self) -> Class {
        match self {
            Verdict::Fine => Class::Fine,
            Verdict::Left(_) => Class::Left,
            Verdict::Hangs(_) => Class::Hangs,
            Verdict::Fails(_) => Class::Fails,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Fine => write!(f, "fine"),
            Verdict::Left(what) => write!(f, "left: {}", what.join("; ")),
            Verdict::Hangs(what) => write!(f, "hangs: {what}"),
            Verdict::Fails(what) => write!(f, "fails: {what}"),
        }
    }
}

/// Runs a row, and fails if its verdict is not the expected one. Another shim than ours gets
/// three tries: what is flaky there is not ours to fix. With `SURVEY` in the environment the
/// verdict is found with short limits, and printed only: what `expected` is written from.
pub fn hold(name: &str, run: impl Fn(&Daemon)) {
    let expected = expected::find(name, shim());
    let survey = std::env::var_os("SURVEY").is_some();
    let tries = if shim() == Shim::Ours || survey { 1 } else { 3 };
    let mut verdicts = Vec::new();
    for _ in 0..tries {
        let verdict = judge(expected.is_some() || survey && shim() != Shim::Ours, &run);
        println!("verdict {name} {} {verdict}", shim().name());
        if survey || expected::agrees(expected, verdict.class()) {
            return;
        }
        verdicts.push(verdict.to_string());
    }
    let wanted = expected.map_or("fine".into(), |row| {
        format!("{:?}: {}", row.class, row.reason)
    });
    panic!("{name}: expected {wanted}; got\n{}", verdicts.join("\n"));
}

/// The version of the Task service: the newest that the shim serves.
pub fn api() -> Api {
    *apis().last().expect("a version of the Task service")
}

fn judge(faulty: bool, run: impl Fn(&Daemon)) -> Verdict {
    let limit = if faulty {
        short_hang_timeout()
    } else {
        hang_timeout()
    };
    let d = Daemon::new(api(), limit);
    left::arrange(&d);
    let verdict = match catch_unwind(AssertUnwindSafe(|| run(&d))) {
        Err(panic) => of_panic(&*panic),
        Ok(()) => match left::settled(&d) {
            left if left.is_empty() => Verdict::Fine,
            left => Verdict::Left(left),
        },
    };
    if !matches!(verdict, Verdict::Fine) {
        for id in d.containers() {
            eprintln!("log of {id}:\n{}", d.log_of(&id));
        }
    }
    verdict
}

/// The harness says of everything that it waited for in vain within which time it did not come.
fn of_panic(panic: &(dyn Any + Send)) -> Verdict {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
    let text = text.unwrap_or_else(|| "a panic without a message".into());
    if text.contains(" within ") || text.contains("DEADLINE_EXCEEDED") {
        Verdict::Hangs(text)
    } else {
        Verdict::Fails(text)
    }
}
