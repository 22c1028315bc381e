//! The states of a sandbox, and what each operation does in each. Pure and total.
//!
//! ```text
//!            Create           Start           Stop, Exited
//!     Absent -----> Created --------> Ready --------------> Stopped
//!                      |                                       ^
//!                      '------------------ Stop ---------------'
//! ```
//!
//! Shutdown leads from each state to `Ended`, from which nothing leads. What is not drawn is
//! refused, or changes nothing: the test below holds the whole table.
//!
//! There is no `_` arm over states and operations on purpose: a new state or operation does not
//! compile until every cell is decided.

use crate::error::{Error, Kind};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The server runs, and no sandbox was created yet.
    Absent,
    /// Its configuration is known; it has no namespaces yet.
    Created,
    /// Containers can be created in it.
    Ready,
    /// It was stopped, or its init has exited. Its namespaces are gone.
    Stopped,
    /// It is removed, and the server ends.
    Ended,
}

/// What is asked of a sandbox, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Take its configuration.
    Create,
    /// Make its namespaces and files.
    Start,
    /// Create a container in it.
    AddContainer,
    /// End its namespaces.
    Stop,
    /// Its init has exited.
    Exited,
    /// Remove it, and end the server.
    Shutdown,
}

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no sandbox.
    Absent,
    /// There is one already.
    Exists,
    /// The state does not allow it; the text that the client sees.
    NotAllowed(&'static str),
    /// The server is about to end.
    Ended,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Absent => Error::not_found("sandbox not created"),
            Refusal::Exists => Error::new(Kind::AlreadyExists, "sandbox already exists"),
            Refusal::NotAllowed(text) => Error::new(Kind::FailedPrecondition, text),
            Refusal::Ended => Error::new(Kind::Unavailable, "the sandbox is shutting down"),
        }
    }
}

/// The state of a sandbox after `op`.
pub fn step(state: State, op: Op) -> Result<State, Refusal> {
    use Refusal::NotAllowed;
    use State::{Absent, Created, Ended, Ready, Stopped};
    match (state, op) {
        (Absent, Op::Create) => Ok(Created),
        (Created | Ready | Stopped, Op::Create) => Err(Refusal::Exists),
        (Ended, Op::Create) => Err(Refusal::Ended),

        (Absent, Op::Start) => Err(Refusal::Absent),
        (Created, Op::Start) => Ok(Ready),
        (Ready, Op::Start) => Err(NotAllowed("cannot start a sandbox that is ready")),
        (Stopped, Op::Start) => Err(NotAllowed("cannot start a stopped sandbox")),
        (Ended, Op::Start) => Err(Refusal::Ended),

        (Absent, Op::AddContainer) => Err(Refusal::Absent),
        (Created, Op::AddContainer) => Err(NotAllowed("the sandbox is not started")),
        (Ready, Op::AddContainer) => Ok(state),
        (Stopped, Op::AddContainer) => Err(NotAllowed("the sandbox is stopped")),
        (Ended, Op::AddContainer) => Err(Refusal::Ended),

        (Absent, Op::Stop) => Err(Refusal::Absent),
        (Created | Ready, Op::Stop) => Ok(Stopped),
        (Stopped | Ended, Op::Stop) => Ok(state),

        (Ready, Op::Exited) => Ok(Stopped),
        (Absent | Created | Stopped | Ended, Op::Exited) => Ok(state),

        (Absent | Created | Ready | Stopped | Ended, Op::Shutdown) => Ok(Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One cell: the new state, `·` for the same one, or how `op` is refused: `nf` with
    /// NotFound, `ae` with AlreadyExists, `fp` with FailedPrecondition, `un` with Unavailable.
    fn cell(state: State, op: Op) -> String {
        match step(state, op) {
            Ok(next) if next == state => "·".into(),
            Ok(next) => format!("{next:?}"),
            Err(refusal) => match Error::from(refusal).kind() {
                Kind::NotFound => "nf".into(),
                Kind::AlreadyExists => "ae".into(),
                Kind::FailedPrecondition => "fp".into(),
                Kind::Unavailable => "un".into(),
                other => format!("{other:?}"),
            },
        }
    }

    #[test]
    fn state_table_of_a_sandbox() {
        use State::{Absent, Created, Ended, Ready, Stopped};
        let ops = [
            Op::Create,
            Op::Start,
            Op::AddContainer,
            Op::Stop,
            Op::Exited,
            Op::Shutdown,
        ];
        let row = |state: State| {
            let cells = ops.map(|op| format!("{:<8}", cell(state, op))).concat();
            format!("{:<8} {}\n", format!("{state:?}"), cells.trim_end())
        };
        let table = [Absent, Created, Ready, Stopped, Ended].map(row).concat();
        let expected = "\
Absent   Created nf      nf      nf      ·       Ended
Created  ae      Ready   fp      Stopped ·       Ended
Ready    ae      fp      ·       Stopped Stopped Ended
Stopped  ae      fp      fp      ·       ·       Ended
Ended    un      un      un      ·       ·       ·
";
        assert_eq!(table, expected);
    }
}
