//! From arguments to an exit code. Only this file uses standard input and output.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use containerd_shim_rs_v2::cli::{self, Action};
use containerd_shim_rs_v2::error::{Context, Error, Result};
use containerd_shim_rs_v2::{
    COMPILER, NAME, REVISION, TARGET, VERSION, check, delete, info, log, pod_init, ps, serve,
    start, sys,
};

/// How much containerd may send on standard input, in bytes.
const MAX_INPUT: u64 = 10 << 20;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    match run(&program, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let end = if is_quoted(&args) { "" } else { "\n" };
            // There may be no stderr. The exit code tells of the failure, too.
            let _ = write!(io::stderr(), "{NAME}: {error}{end}");
            ExitCode::FAILURE
        }
    }
}

/// Whether containerd reads the error and goes on in the same line: `ERROR: exit status 1`.
fn is_quoted(args: &[OsString]) -> bool {
    let is_containerds = |action: &OsString| action == "start" || action == "delete";
    args.last().is_some_and(is_containerds) && !io::stderr().is_terminal()
}

fn run(program: &OsStr, args: &[OsString]) -> Result<()> {
    // The server of a sandbox has cleared the way for it: none of what follows is needed, and in
    // its own root there is no /proc.
    match args {
        [action] if action == pod_init::ACTION => return pod_init::run(),
        [action, place] if action == pod_init::ACTION && place == pod_init::IN_ROOT => {
            return pod_init::run_in_root();
        }
        _ => {}
    }
    sys::fd::close_on_exec_from(3).context(|| "set close-on-exec on inherited descriptors")?;
    // `pkill -USR1 containerd` also matches this program's name.
    sys::process::outlive_signals().context(|| "catch signals")?;
    match cli::parse(args, |name| std::env::var_os(name))? {
        Action::Start(flags) => start::run(&flags, &input()?, &mut io::stdout()),
        Action::Serve(flags) => serve::run(&flags),
        Action::Delete(flags) => {
            log::warn_on_stderr();
            delete::run(&flags, &mut io::stdout())
        }
        Action::Check { json } => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            check::run(json, path, &mut io::stdout())
        }
        Action::Ps { json } => ps::list(json, &mut io::stdout()),
        Action::Inspect { id } => ps::inspect(&id, &mut io::stdout()),
        Action::Info => info::run(&input()?, &mut io::stdout()),
        Action::Version => print_version(Path::new(program)),
        Action::Help => write!(io::stdout(), "{}", cli::help()).context(|| "print the help"),
        Action::NoAction => {
            let _ = writeln!(io::stderr(), "{}", cli::help());
            Err(Error::invalid("no action: shim namespace cannot be empty"))
        }
    }
}

/// What containerd has sent; nothing if standard input is a terminal.
fn input() -> Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    if stdin.is_terminal() {
        return Ok(input);
    }
    stdin
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut input)
        .context(|| "read standard input")?;
    if input.len() as u64 > MAX_INPUT {
        let message = format!("read standard input: more than {MAX_INPUT} bytes");
        return Err(Error::invalid(message));
    }
    Ok(input)
}

fn print_version(program: &Path) -> Result<()> {
    let name = program.file_name().unwrap_or(NAME.as_ref()).display();
    writeln!(
        io::stdout(),
        "{name}:\n  Version:  {VERSION}\n  Revision: {REVISION}\n  Target:   {TARGET}\n  \
         Compiler: {COMPILER}\n"
    )
    .context(|| "print the version")
}
