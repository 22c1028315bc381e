//! containerd's end of the events: away, killed in between, refusing, silent, or ending a
//! connection within an answer. Once it is back, it has every event, once and in order.

use crate::harness::Daemon;
use crate::harness::container::Container;
use crate::harness::events::Behaviour;
use crate::scene::remove;

/// A container with an exec, from its creation to its deletion.
fn live<'d>(d: &'d Daemon, between: impl Fn()) -> Container<'d> {
    let c = d.container("c", &["sleep", "inf"]).shim();
    let steps: [&dyn Fn(); 7] = [
        &|| {
            c.create().expect("Create");
        },
        &|| {
            c.start().expect("Start");
        },
        &|| {
            c.exec("e", &["true"]).expect("Exec");
        },
        &|| {
            c.process("e").start().expect("Start");
        },
        &|| assert_eq!(c.process("e").exit_status(), 0),
        &|| c.end(),
        &|| {
            c.delete().expect("Delete");
        },
    ];
    for step in steps {
        step();
        between();
    }
    c
}

const ALL: [&str; 7] = [
    "create",
    "start",
    "exec-added e",
    "exec-started e",
    "exit e",
    "exit",
    "delete",
];

/// Every event has come once, in order, when the server has ended.
fn assert_all(d: &Daemon, c: &Container) {
    assert_eq!(d.events.until("c", "delete"), ALL);
    assert_eq!(remove(c), 0, "the server's end");
}

/// The same, but one may have come twice: if its answer was lost.
fn assert_all_at_least_once(d: &Daemon, c: &Container) {
    let mut events = d.events.until("c", "delete");
    events.dedup();
    assert_eq!(events, ALL);
    assert_eq!(remove(c), 0, "the server's end");
}

/// The listener misbehaves during the whole life, and recovers.
fn misbehaves(d: &Daemon, behaviour: Behaviour) {
    d.events.set_behaviour(behaviour);
    let c = live(d, || {});
    d.events.wait_attempts(1);
    d.events.set_behaviour(Behaviour::Take);
    assert_all(d, &c);
}

faults! { "events";
    fn listener_is_away(d) {
        d.events.stop();
        let c = live(d, || {});
        d.events.restart();
        assert_all(d, &c);
    }

    fn listener_is_killed_after_each_call(d) {
        let c = live(d, || {
            d.events.stop();
            d.events.restart();
        });
        assert_all_at_least_once(d, &c);
    }

    fn listener_refuses(d) {
        misbehaves(d, Behaviour::Refuse);
    }

    fn listener_is_silent(d) {
        misbehaves(d, Behaviour::Hang);
    }

    fn listener_is_stopped(d) {
        d.events.set_behaviour(Behaviour::Stopped);
        let c = live(d, || {});
        d.events.set_behaviour(Behaviour::Take);
        assert_all(d, &c);
    }

    fn listener_closes_within_its_answer(d) {
        misbehaves(d, Behaviour::Break);
    }

    fn server_is_killed_while_the_listener_is_away(d) {
        d.events.stop();
        let c = live(d, || {});
        c.kill_shim();
        d.events.restart();
        assert_eq!(remove(&c), 137, "the server's end");
    }

    fn server_ends_while_the_listener_is_silent(d) {
        d.events.set_behaviour(Behaviour::Hang);
        let c = live(d, || {});
        assert_eq!(remove(&c), 0, "the server's end");
    }
}

pub mod long {
    //! The same for minutes, in which the container lives: the events come from all of them.

    use std::time::Duration;

    use nix::poll::PollTimeout;

    use super::{ALL, assert_all, live};
    use crate::harness::Daemon;
    use crate::harness::events::Behaviour;

    /// How long the listener is not there, or misbehaves.
    const AWAY: Duration = Duration::from_secs(180);

    /// A call of the container's life, and a part of the time.
    fn live_for_minutes(d: &Daemon, listener_recovers: impl Fn()) {
        let pause = AWAY / ALL.len() as u32;
        let pause = PollTimeout::try_from(pause).expect("a time for poll(2)");
        let c = live(d, || {
            let _ = nix::poll::poll(&mut [], pause);
        });
        listener_recovers();
        assert_all(d, &c);
    }

    fn misbehaves_for_minutes(d: &Daemon, behaviour: Behaviour) {
        d.events.set_behaviour(behaviour);
        live_for_minutes(d, || d.events.set_behaviour(Behaviour::Take));
    }

    faults! { "events::long";
        fn listener_is_away_for_minutes(d) {
            d.events.stop();
            live_for_minutes(d, || d.events.restart());
        }

        fn listener_is_stopped_for_minutes(d) {
            misbehaves_for_minutes(d, Behaviour::Stopped);
        }

        fn listener_refuses_for_minutes(d) {
            misbehaves_for_minutes(d, Behaviour::Refuse);
        }

        fn listener_is_silent_for_minutes(d) {
            misbehaves_for_minutes(d, Behaviour::Hang);
        }

        fn listener_closes_within_its_answers_for_minutes(d) {
            misbehaves_for_minutes(d, Behaviour::Break);
        }
    }
}
