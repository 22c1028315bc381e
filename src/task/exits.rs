//! The order in which exits are published: an init's after those of all its execs. Pure.
//!
//! An init's exit is held back while something is under way that is published before it: the
//! init's own start, an exec's start, an exec that runs. The kernel may end the init first all
//! the same, for example in a shared pid namespace.

/// What holds back the exit of one container's init.
#[derive(Debug, Default)]
pub struct Exits {
    /// How many starts and running execs hold it back.
    holds: usize,
    init: Init,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Init {
    #[default]
    Alive,
    /// It has exited, and that is not published yet.
    Held,
    Published,
}

impl Exits {
    /// Whether the init has exited: no exec may start any more.
    pub fn init_has_exited(&self) -> bool {
        self.init != Init::Alive
    }

    /// From now on the init's exit is held back, until [`Exits::release`]. One for
    /// each start under way; an exec's goes on while the exec runs.
    pub fn hold(&mut self) {
        self.holds += 1;
    }

    /// One hold is over. Whether the init's exit is to be published now.
    #[must_use = "an exit that is not published is lost"]
    pub fn release(&mut self) -> bool {
        self.holds -= 1;
        self.take_due()
    }

    /// The init has exited. Whether that is to be published now. A second exit is ignored.
    #[must_use = "an exit that is not published is lost"]
    pub fn init_exited(&mut self) -> bool {
        if self.init_has_exited() {
            return false;
        }
        self.init = Init::Held;
        self.take_due()
    }

    fn take_due(&mut self) -> bool {
        let is_due = self.holds == 0 && self.init == Init::Held;
        if is_due {
            self.init = Init::Published;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exit_of_an_init_alone_is_due_at_once() {
        let mut exits = Exits::default();
        assert!(!exits.init_has_exited());
        assert!(exits.init_exited());
        assert!(exits.init_has_exited());
        assert!(!exits.init_exited());
    }

    #[test]
    fn exit_of_an_init_waits_for_the_last_hold() {
        let mut exits = Exits::default();
        exits.hold();
        exits.hold();
        assert!(!exits.init_exited());
        assert!(exits.init_has_exited());
        assert!(!exits.release());
        assert!(exits.release());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        ExecStarts,
        /// A hold that is open ends: an exec exits or fails to start.
        HoldEnds,
        InitExits,
    }

    proptest! {
        /// In every schedule the init's exit is published exactly once, after the exit of every
        /// exec that was let in, and no exec is let in after it.
        #[test]
        fn init_exit_is_published_once_and_last(
            steps in proptest::collection::vec(
                prop_oneof![Just(Step::ExecStarts), Just(Step::HoldEnds), Just(Step::InitExits)],
                0..60,
            ),
        ) {
            let mut exits = Exits::default();
            let (mut open, mut published) = (0, 0);
            let mut check = |open: usize, is_due: bool| {
                if is_due {
                    published += 1;
                    assert_eq!(open, 0, "published before the last exec");
                }
            };
            for step in steps.into_iter().chain([Step::InitExits]) {
                match step {
                    Step::ExecStarts if !exits.init_has_exited() => {
                        exits.hold();
                        open += 1;
                    }
                    Step::HoldEnds if open > 0 => {
                        open -= 1;
                        check(open, exits.release());
                    }
                    Step::InitExits => check(open, exits.init_exited()),
                    Step::ExecStarts | Step::HoldEnds => {}
                }
            }
            while open > 0 {
                open -= 1;
                check(open, exits.release());
            }
            prop_assert_eq!(published, 1);
        }
    }
}
