//! What a person sees while it runs, on stderr.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a step is told that is not the last, where lines stay.
const PAUSE: Duration = Duration::from_secs(15);

/// A part of the run.
pub struct Progress {
    title: String,
    begin: Instant,
    told: Cell<Instant>,
}

impl Progress {
    pub fn of(title: &str) -> Progress {
        eprintln!("bench: {title}");
        Progress {
            title: title.into(),
            begin: Instant::now(),
            told: Cell::new(Instant::now()),
        }
    }

    pub fn step(&self, step: usize, of: usize) {
        self.say(&format!("{step} of {of}"));
    }

    pub fn say(&self, what: &str) {
        let seconds = self.begin.elapsed().as_secs();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[Kbench: {} ({what}, {seconds} s)", self.title);
            let _ = std::io::stderr().flush();
        } else if self.told.get().elapsed() > PAUSE {
            self.told.set(Instant::now());
            eprintln!("bench: {} ({what}, {seconds} s)", self.title);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
