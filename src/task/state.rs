//! The states of a process and what each operation does in each: pure, total. There
//! is no `_` arm over states and operations on purpose: a new one must be thought
//! through in every cell.

use crate::error::{Error, Kind};

/// Where a process is in its life. Only an init can be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Made; an init waits to be started, an exec has no process yet.
    Created,
    /// Running.
    Running,
    /// Frozen with its whole container.
    Paused,
    /// Ended, and not deleted yet.
    Stopped,
    /// Gone; only a request that came too late still sees it.
    Deleted,
}

/// What is asked of an init, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Start it.
    Start,
    /// Add an exec to its container.
    Exec,
    /// Signal it.
    Kill,
    /// Resize its terminal.
    Resize,
    /// Freeze its container.
    Pause,
    /// Thaw its container.
    Resume,
    /// Change its container's resources.
    Update,
    /// Checkpoint its container.
    Checkpoint,
    /// Forget it.
    Delete,
    /// It ended.
    Exited,
}

/// What is asked of an exec, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecOp {
    /// Start it.
    Start,
    /// Signal it.
    Kill,
    /// Resize its terminal.
    Resize,
    /// Forget it.
    Delete,
    /// It ended.
    Exited,
}

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The state does not allow it: `cannot VERB OBJECT STATE`.
    No(&'static str),
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
            Refusal::No(text) => Error::unknown(text),
            Refusal::Finished => Error::not_found("process already finished"),
            Refusal::NotCreated => Error::new(
                Kind::FailedPrecondition,
                "process not created: failed precondition",
            ),
            Refusal::Deleted => Error::not_found("cannot delete a deleted process"),
        }
    }
}

/// What `op` makes of an init in `state`.
pub fn step(state: State, op: Op) -> Result<State, Refusal> {
    use Refusal::{Deleted as Gone, Finished, No};
    use State::{Created, Deleted, Paused, Running, Stopped};
    match (state, op) {
        (Created, Op::Start) => Ok(Running),
        (Running, Op::Start) => Err(No("cannot start a running process")),
        (Paused, Op::Start) => Err(No("cannot start a paused process")),
        (Stopped, Op::Start) => Err(No("cannot start a stopped process")),
        (Deleted, Op::Start) => Err(No("cannot start a deleted process")),

        (Created | Running, Op::Exec) => Ok(state),
        (Paused, Op::Exec) => Err(No("cannot exec in a paused state")),
        (Stopped, Op::Exec) => Err(No("cannot exec in a stopped state")),
        (Deleted, Op::Exec) => Err(No("cannot exec in a deleted state")),

        (Created | Running | Paused, Op::Kill) => Ok(state),
        (Stopped | Deleted, Op::Kill) => Err(Finished),

        (Created | Running | Paused | Stopped, Op::Resize) => Ok(state),
        (Deleted, Op::Resize) => Err(No("cannot resize a deleted container")),

        (Created, Op::Pause) => Err(No("cannot pause task in created state")),
        (Running, Op::Pause) => Ok(Paused),
        (Paused, Op::Pause) => Err(No("cannot pause a paused container")),
        (Stopped, Op::Pause) => Err(No("cannot pause a stopped container")),
        (Deleted, Op::Pause) => Err(No("cannot pause a deleted container")),

        (Created, Op::Resume) => Err(No("cannot resume task in created state")),
        (Running, Op::Resume) => Err(No("cannot resume a running process")),
        (Paused, Op::Resume) => Ok(Running),
        (Stopped, Op::Resume) => Err(No("cannot resume a stopped container")),
        (Deleted, Op::Resume) => Err(No("cannot resume a deleted container")),

        (Created | Running | Paused, Op::Update) => Ok(state),
        (Stopped, Op::Update) => Err(No("cannot update a stopped container")),
        (Deleted, Op::Update) => Err(No("cannot update a deleted process")),

        (Running | Paused, Op::Checkpoint) => Ok(state),
        (Created, Op::Checkpoint) => Err(No("cannot checkpoint a task in created state")),
        (Stopped, Op::Checkpoint) => Err(No("cannot checkpoint a stopped container")),
        (Deleted, Op::Checkpoint) => Err(No("cannot checkpoint a deleted process")),

        (Created | Stopped, Op::Delete) => Ok(Deleted),
        (Running, Op::Delete) => Err(No("cannot delete a running process")),
        (Paused, Op::Delete) => Err(No("cannot delete a paused process")),
        (Deleted, Op::Delete) => Err(Gone),

        (Created | Running | Paused, Op::Exited) => Ok(Stopped),
        (Stopped | Deleted, Op::Exited) => Ok(state),
    }
}

/// What `op` makes of an exec in `state`. An exec is never [`State::Paused`]: that is
/// its container's state.
pub fn step_exec(state: State, op: ExecOp) -> Result<State, Refusal> {
    use Refusal::{Deleted as Gone, Finished, No, NotCreated};
    use State::{Created, Deleted, Paused, Running, Stopped};
    match (state, op) {
        (Created, ExecOp::Start) => Ok(Running),
        (Running | Paused, ExecOp::Start) => Err(No("cannot start a running process")),
        (Stopped, ExecOp::Start) => Err(No("cannot start a stopped process")),
        (Deleted, ExecOp::Start) => Err(No("cannot start a deleted process")),

        (Created, ExecOp::Kill) => Err(NotCreated),
        (Running | Paused, ExecOp::Kill) => Ok(state),
        (Stopped | Deleted, ExecOp::Kill) => Err(Finished),

        (Created | Running | Paused, ExecOp::Resize) => Ok(state),
        (Stopped, ExecOp::Resize) => Err(No("cannot resize a stopped container")),
        (Deleted, ExecOp::Resize) => Err(No("cannot resize a deleted container")),

        (Created | Stopped, ExecOp::Delete) => Ok(Deleted),
        (Running | Paused, ExecOp::Delete) => Err(No("cannot delete a running process")),
        (Deleted, ExecOp::Delete) => Err(Gone),

        (Created | Running | Paused, ExecOp::Exited) => Ok(Stopped),
        (Stopped | Deleted, ExecOp::Exited) => Ok(state),
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

    /// One cell: `·` allowed and state kept, `no` refused, `nf` not found.
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

    fn grid<O: Copy>(ops: &[O], step: impl Fn(State, O) -> Result<State, Refusal>) -> String {
        let row = |state: State| {
            let cells = ops.iter().map(|op| cell(state, step(state, *op)));
            let cells = cells.map(|cell| format!("{cell:<8}")).collect::<String>();
            format!("{:<8} {}\n", format!("{state:?}"), cells.trim_end())
        };
        STATES.map(row).concat()
    }

    #[test]
    fn the_grid_of_an_init() {
        use Op::*;
        let ops = [
            Start, Exec, Kill, Resize, Pause, Resume, Update, Checkpoint, Delete, Exited,
        ];
        let expected = "\
Created  Running ·       ·       ·       no      no      ·       no      Deleted Stopped
Running  no      ·       ·       ·       Paused  no      ·       ·       no      Stopped
Paused   no      no      ·       ·       no      Running ·       ·       no      Stopped
Stopped  no      no      nf      ·       no      no      no      no      Deleted ·
Deleted  no      no      nf      no      no      no      no      no      nf      ·
";
        assert_eq!(grid(&ops, step), expected);
    }

    #[test]
    fn the_grid_of_an_exec() {
        use ExecOp::*;
        let expected = "\
Created  Running fp      ·       Deleted Stopped
Running  no      ·       ·       no      Stopped
Paused   no      ·       ·       no      Stopped
Stopped  no      nf      no      Deleted ·
Deleted  no      nf      no      nf      ·
";
        assert_eq!(
            grid(&[Start, Kill, Resize, Delete, Exited], step_exec),
            expected
        );
    }
}
