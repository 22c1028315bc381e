//! The states of a process, and what each operation does in each. Pure and total.
//!
//! An init:
//!
//! ```text
//!               Start              Pause
//!     Created ---------> Running ----------> Paused
//!      |    \              |     <----------   |
//!      |     \   Exited    | Exited   Resume   | Exited
//!      |      \            v                   |
//!      |       '------> Stopped <-------------'
//!      | Delete            | Delete
//!      '----> Deleted <----'
//! ```
//!
//! An exec has the same states but Paused: while its container is paused, a running exec is
//! reported as paused. What is not drawn is refused, or changes nothing: the tests below hold
//! the whole tables.
//!
//! There is no `_` arm over states and operations on purpose: a new state or operation does not
//! compile until every cell is decided.

use crate::error::{Error, Kind};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// An init waits to be started; an exec has no process yet.
    Created,
    /// Running.
    Running,
    /// Frozen with its whole container. Only an init has this state.
    Paused,
    /// It has exited, and is not deleted yet.
    Stopped,
    /// It is deleted. Only a late request still sees it.
    Deleted,
}

/// What is asked of a process, init or exec, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Start it.
    Start,
    /// Signal it.
    Kill,
    /// Resize its terminal.
    Resize,
    /// Delete it.
    Delete,
    /// It has exited.
    Exited,
}

/// What is asked of a container. Whether it is allowed depends on the init's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerOp {
    /// Add an exec.
    Exec,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
    /// Change its resources.
    Update,
    /// Write a checkpoint of it.
    Checkpoint,
}

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The state does not allow it; the text that the client sees.
    NotAllowed(&'static str),
    /// The process has ended.
    Finished,
    /// The process was never started.
    NotCreated,
    /// The process was deleted.
    Deleted,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            // Go's shim has no code for these; clients match on the text at most.
            Refusal::NotAllowed(text) => Error::unknown(text),
            Refusal::Finished => Error::not_found("process already finished"),
            Refusal::NotCreated => Error::new(
                Kind::FailedPrecondition,
                "process not created: failed precondition",
            ),
            Refusal::Deleted => Error::not_found("cannot delete a deleted process"),
        }
    }
}

/// The state of an init after `op`.
pub fn step_init(state: State, op: Op) -> Result<State, Refusal> {
    use Refusal::{Deleted as AlreadyDeleted, Finished, NotAllowed};
    use State::{Created, Deleted, Paused, Running, Stopped};
    match (state, op) {
        (Created, Op::Start) => Ok(Running),
        (Running, Op::Start) => Err(NotAllowed("cannot start a running process")),
        (Paused, Op::Start) => Err(NotAllowed("cannot start a paused process")),
        (Stopped, Op::Start) => Err(NotAllowed("cannot start a stopped process")),
        (Deleted, Op::Start) => Err(NotAllowed("cannot start a deleted process")),

        (Created | Running | Paused, Op::Kill) => Ok(state),
        (Stopped | Deleted, Op::Kill) => Err(Finished),

        (Created | Running | Paused | Stopped, Op::Resize) => Ok(state),
        (Deleted, Op::Resize) => Err(NotAllowed("cannot resize a deleted container")),

        (Created | Stopped, Op::Delete) => Ok(Deleted),
        (Running, Op::Delete) => Err(NotAllowed("cannot delete a running process")),
        (Paused, Op::Delete) => Err(NotAllowed("cannot delete a paused process")),
        (Deleted, Op::Delete) => Err(AlreadyDeleted),

        (Created | Running | Paused, Op::Exited) => Ok(Stopped),
        (Stopped | Deleted, Op::Exited) => Ok(state),
    }
}

/// The state of a container's init after `op`.
pub fn step_container(state: State, op: ContainerOp) -> Result<State, Refusal> {
    use Refusal::NotAllowed;
    use State::{Created, Deleted, Paused, Running, Stopped};
    match (state, op) {
        (Created | Running, ContainerOp::Exec) => Ok(state),
        (Paused, ContainerOp::Exec) => Err(NotAllowed("cannot exec in a paused state")),
        (Stopped, ContainerOp::Exec) => Err(NotAllowed("cannot exec in a stopped state")),
        (Deleted, ContainerOp::Exec) => Err(NotAllowed("cannot exec in a deleted state")),

        (Created, ContainerOp::Pause) => Err(NotAllowed("cannot pause task in created state")),
        (Running, ContainerOp::Pause) => Ok(Paused),
        (Paused, ContainerOp::Pause) => Err(NotAllowed("cannot pause a paused container")),
        (Stopped, ContainerOp::Pause) => Err(NotAllowed("cannot pause a stopped container")),
        (Deleted, ContainerOp::Pause) => Err(NotAllowed("cannot pause a deleted container")),

        (Created, ContainerOp::Resume) => Err(NotAllowed("cannot resume task in created state")),
        (Running, ContainerOp::Resume) => Err(NotAllowed("cannot resume a running process")),
        (Paused, ContainerOp::Resume) => Ok(Running),
        (Stopped, ContainerOp::Resume) => Err(NotAllowed("cannot resume a stopped container")),
        (Deleted, ContainerOp::Resume) => Err(NotAllowed("cannot resume a deleted container")),

        (Created | Running | Paused, ContainerOp::Update) => Ok(state),
        (Stopped, ContainerOp::Update) => Err(NotAllowed("cannot update a stopped container")),
        (Deleted, ContainerOp::Update) => Err(NotAllowed("cannot update a deleted process")),

        (Running | Paused, ContainerOp::Checkpoint) => Ok(state),
        (Created, ContainerOp::Checkpoint) => {
            Err(NotAllowed("cannot checkpoint a task in created state"))
        }
        (Stopped, ContainerOp::Checkpoint) => {
            Err(NotAllowed("cannot checkpoint a stopped container"))
        }
        (Deleted, ContainerOp::Checkpoint) => {
            Err(NotAllowed("cannot checkpoint a deleted process"))
        }
    }
}

/// The state of an exec after `op`.
pub fn step_exec(state: State, op: Op) -> Result<State, Refusal> {
    use Refusal::{Deleted as AlreadyDeleted, Finished, NotAllowed, NotCreated};
    use State::{Created, Deleted, Paused, Running, Stopped};
    match (state, op) {
        (Created, Op::Start) => Ok(Running),
        (Running | Paused, Op::Start) => Err(NotAllowed("cannot start a running process")),
        (Stopped, Op::Start) => Err(NotAllowed("cannot start a stopped process")),
        (Deleted, Op::Start) => Err(NotAllowed("cannot start a deleted process")),

        (Created, Op::Kill) => Err(NotCreated),
        (Running | Paused, Op::Kill) => Ok(state),
        (Stopped | Deleted, Op::Kill) => Err(Finished),

        (Created | Running | Paused, Op::Resize) => Ok(state),
        (Stopped, Op::Resize) => Err(NotAllowed("cannot resize a stopped container")),
        (Deleted, Op::Resize) => Err(NotAllowed("cannot resize a deleted container")),

        (Created | Stopped, Op::Delete) => Ok(Deleted),
        (Running | Paused, Op::Delete) => Err(NotAllowed("cannot delete a running process")),
        (Deleted, Op::Delete) => Err(AlreadyDeleted),

        (Created | Running | Paused, Op::Exited) => Ok(Stopped),
        (Stopped | Deleted, Op::Exited) => Ok(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] = [
        State::Created,
        State::Running,
        State::Paused,
        State::Stopped,
        State::Deleted,
    ];

    /// One cell: the new state, `·` for the same one, or how `op` is refused: `nf` with NotFound,
    /// `fp` with FailedPrecondition, `no` with Unknown.
    fn cell(state: State, result: Result<State, Refusal>) -> String {
        match result {
            Ok(next) if next == state => "·".into(),
            Ok(next) => format!("{next:?}"),
            Err(refusal) => match Error::from(refusal).kind() {
                Kind::NotFound => "nf".into(),
                Kind::FailedPrecondition => "fp".into(),
                _ => "no".into(),
            },
        }
    }

    fn table<O: Copy>(ops: &[O], step: impl Fn(State, O) -> Result<State, Refusal>) -> String {
        let row = |state: State| {
            let cells = ops.iter().map(|op| cell(state, step(state, *op)));
            let cells = cells.map(|cell| format!("{cell:<8}")).collect::<String>();
            format!("{:<8} {}\n", format!("{state:?}"), cells.trim_end())
        };
        STATES.map(row).concat()
    }

    const OPS: [Op; 5] = [Op::Start, Op::Kill, Op::Resize, Op::Delete, Op::Exited];

    #[test]
    fn state_table_of_an_init() {
        let expected = "\
Created  Running ·       ·       Deleted Stopped
Running  no      ·       ·       no      Stopped
Paused   no      ·       ·       no      Stopped
Stopped  no      nf      ·       Deleted ·
Deleted  no      nf      no      nf      ·
";
        assert_eq!(table(&OPS, step_init), expected);
    }

    #[test]
    fn state_table_of_a_container() {
        use ContainerOp::*;
        let expected = "\
Created  ·       no      no      ·       no
Running  ·       Paused  no      ·       ·
Paused   no      no      Running ·       ·
Stopped  no      no      no      no      no
Deleted  no      no      no      no      no
";
        let ops = [Exec, Pause, Resume, Update, Checkpoint];
        assert_eq!(table(&ops, step_container), expected);
    }

    #[test]
    fn state_table_of_an_exec() {
        let expected = "\
Created  Running fp      ·       Deleted Stopped
Running  no      ·       ·       no      Stopped
Paused   no      ·       ·       no      Stopped
Stopped  no      nf      no      Deleted ·
Deleted  no      nf      no      nf      ·
";
        assert_eq!(table(&OPS, step_exec), expected);
    }
}
