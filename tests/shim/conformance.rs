//! How the conformance suite runs a case: once per version of the Task service, and held
//! against the table of differences.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::differences;
use crate::harness::{Api, Daemon, Shim, apis, hang_timeout, runtime, shim, short_hang_timeout};

/// Declares cases: tests that get a [`Daemon`], run once per version of the Task service.
macro_rules! cases {
    ($($(#[$meta:meta])* fn $name:ident($daemon:ident) $body:block)*) => {
        $($(#[$meta])* #[test] fn $name() {
            $crate::conformance::case(stringify!($name), |$daemon: &$crate::harness::Daemon| $body);
        })*
    };
}

/// Runs a case, and holds it against the table of differences. With another shim it gets
/// three tries: what is flaky there is not ours to fix.
pub fn case(name: &str, body: impl Fn(&Daemon)) {
    let tries = if shim() == Shim::Ours { 1 } else { 3 };
    for &api in apis() {
        let mut outcome = attempt(name, api, &body);
        for _ in 1..tries {
            outcome = outcome.or_else(|_| attempt(name, api, &body));
        }
        if let Err(failure) = outcome {
            eprintln!("case {name} failed with {api:?}");
            resume_unwind(failure);
        }
    }
}

/// Fails if the case does not end as the table says.
fn attempt(name: &str, api: Api, body: impl Fn(&Daemon)) -> std::thread::Result<()> {
    let expected = differences::find(name, shim(), runtime());
    let hang_timeout = if expected.is_some() {
        short_hang_timeout()
    } else {
        hang_timeout()
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&Daemon::new(api, hang_timeout))));
    match (outcome, expected) {
        (Ok(()), Some(row)) if !row.may_pass() => catch_unwind(|| {
            panic!(
                "passes, though the table of differences says: {}",
                row.reason
            )
        }),
        (Err(failure), None) => Err(failure),
        _ => Ok(()),
    }
}
