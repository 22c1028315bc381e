//! The order in which exits are told: an init's after those of all its execs. Pure.
//!
//! An init's exit is held back while anything that must be told before it is under
//! way: its own start, an exec's start, an exec that runs. The kernel may end
//! init first all the same, for example in a shared pid namespace.

/// The ledger of one container; `T` is an init's exit.
#[derive(Debug)]
pub struct Exits<T> {
    /// How many starts and running execs hold back the init's exit.
    holds: usize,
    init: Init<T>,
}

#[derive(Debug)]
enum Init<T> {
    Alive,
    /// Ended, and not yet told.
    Held(T),
    Told,
}

impl<T> Default for Exits<T> {
    fn default() -> Self {
        Exits {
            holds: 0,
            init: Init::Alive,
        }
    }
}

impl<T> Exits<T> {
    /// Whether the init has ended: no exec may start any more.
    pub fn init_ended(&self) -> bool {
        !matches!(self.init, Init::Alive)
    }

    /// From now on the init's exit is held back, until [`Exits::release`]. One for
    /// each start under way; an exec's goes on while the exec runs.
    pub fn hold(&mut self) {
        self.holds += 1;
    }

    /// One hold is over. Answers the init's exit if it is to be told now.
    #[must_use = "an exit that is not told is lost"]
    pub fn release(&mut self) -> Option<T> {
        self.holds -= 1;
        self.due()
    }

    /// The init ended. Answers its exit if it is to be told now. A second end is
    /// ignored.
    #[must_use = "an exit that is not told is lost"]
    pub fn init_exited(&mut self, exit: T) -> Option<T> {
        if self.init_ended() {
            return None;
        }
        self.init = Init::Held(exit);
        self.due()
    }

    fn due(&mut self) -> Option<T> {
        if self.holds > 0 || !matches!(self.init, Init::Held(_)) {
            return None;
        }
        match std::mem::replace(&mut self.init, Init::Told) {
            Init::Held(exit) => Some(exit),
            Init::Alive | Init::Told => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_init_alone_is_told_at_once() {
        let mut exits = Exits::default();
        assert!(!exits.init_ended());
        assert_eq!(exits.init_exited(7), Some(7));
        assert!(exits.init_ended());
        assert_eq!(exits.init_exited(8), None);
    }

    #[test]
    fn an_init_waits_for_the_last_hold() {
        let mut exits = Exits::default();
        exits.hold();
        exits.hold();
        assert_eq!(exits.init_exited(7), None);
        assert!(exits.init_ended());
        assert_eq!(exits.release(), None);
        assert_eq!(exits.release(), Some(7));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        ExecStarts,
        /// The n-th hold that is open, modulo, ends: an exec exits or fails to start.
        HoldEnds,
        InitExits,
    }

    proptest! {
        /// Whatever the schedule: the init's exit is told exactly once, after every
        /// exec that was let in, and none is let in after it.
        #[test]
        fn init_is_last_and_told_once(
            steps in proptest::collection::vec(
                prop_oneof![Just(Step::ExecStarts), Just(Step::HoldEnds), Just(Step::InitExits)],
                0..60,
            ),
        ) {
            let mut exits = Exits::default();
            let (mut open, mut told) = (0, 0);
            let mut check = |open: usize, exit: Option<()>| {
                if exit.is_some() {
                    told += 1;
                    assert_eq!(open, 0, "told before the last exec");
                }
            };
            for step in steps.into_iter().chain([Step::InitExits]) {
                match step {
                    Step::ExecStarts if !exits.init_ended() => {
                        exits.hold();
                        open += 1;
                    }
                    Step::HoldEnds if open > 0 => {
                        open -= 1;
                        check(open, exits.release());
                    }
                    Step::InitExits => check(open, exits.init_exited(())),
                    Step::ExecStarts | Step::HoldEnds => {}
                }
            }
            while open > 0 {
                open -= 1;
                check(open, exits.release());
            }
            prop_assert_eq!(told, 1);
        }
    }
}
