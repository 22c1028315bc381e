//! From arguments to an exit code. Only here standard input and output are touched.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use containerd_shim_rs_v2::cli::{self, Action};
use containerd_shim_rs_v2::error::{Context, Error, Result};
use containerd_shim_rs_v2::{
    COMPILER, NAME, REVISION, TARGET, VERSION, bootstrap, cleanup, daemon, info, log, sys,
};

/// Most that containerd may send on standard input, in bytes.
const INPUT_LIMIT: u64 = 10 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There may be no stderr; the exit code says it, too.
            let _ = writeln!(io::stderr(), "{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    sys::fd::close_on_exec_from(3).context(|| "set close-on-exec on inherited descriptors")?;
    // `pkill -USR1 containerd` is for containerd, but matches this program, too.
    sys::process::outlive_signals().context(|| "catch signals")?;
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    match cli::parse(&args, |name| std::env::var_os(name))? {
        Action::Start(flags) => bootstrap::run(&flags, &input()?, &mut io::stdout()),
        Action::Serve(flags) => daemon::run(&flags),
        Action::Delete(flags) => {
            log::warn_on_stderr();
            cleanup::run(&flags, &mut io::stdout())
        }
        Action::Info => info::run(&input()?, &mut io::stdout()),
        Action::Version => print_version(Path::new(&program)),
        Action::Help => write!(io::stdout(), "{}", cli::help()).context(|| "print the help"),
        Action::NoAction => {
            let _ = writeln!(io::stderr(), "{}", cli::help());
            Err(Error::invalid("no action: shim namespace cannot be empty"))
        }
    }
}

/// What containerd sent; nothing when a person is at the other end.
fn input() -> Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    if stdin.is_terminal() {
        return Ok(input);
    }
    stdin
        .lock()
        .take(INPUT_LIMIT + 1)
        .read_to_end(&mut input)
        .context(|| "read standard input")?;
    if input.len() as u64 > INPUT_LIMIT {
        let message = format!("read standard input: more than {INPUT_LIMIT} bytes");
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
