//! The command line, as a person types it: help, errors that say what exists, `-v`; and
//! that none of it changes what containerd's calls mean.

use std::process::{Command, Stdio as Channel};

use crate::harness::process::{self, Output};
use crate::harness::*;

/// What the shim answers when a person gives it these arguments, and no input.
fn typed(d: &Daemon, args: &[&str]) -> Output {
    let mut command = Command::new(shim_binary());
    process::run(
        command.args(args).current_dir(d.path(".")),
        &[],
        d.hang_timeout,
    )
}

/// Refused with an error on standard error alone, which contains `text`.
#[track_caller]
fn assert_refused(output: &Output, text: &str) {
    assert_ne!(output.status, 0, "{output:?}");
    assert_eq!(output.stdout_text(), "");
    assert!(output.stderr_text().contains(text), "{output:?}");
}

/// Has the parts of a help text that a person needs.
#[track_caller]
fn assert_helps(text: &str) {
    for part in [
        "containerd runtime v2 shim",
        "--runtime io.containerd.",
        "\n  start ",
        "\n  delete ",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

cases! {
    fn help_goes_to_standard_output(d) {
        for flag in ["-h", "-help", "--help"] {
            let output = typed(d, &[flag]);
            assert_eq!((output.status, output.stderr_text().as_str()), (0, ""), "{flag}");
            assert_helps(&output.stdout_text());
        }
    }

    fn help_flag_lists_the_flags(d) {
        let output = typed(d, &["--help"]);
        assert_eq!(output.status, 0);
        let text = output.stdout_text() + &output.stderr_text();
        for flag in ["-namespace", "-id", "-address", "-bundle", "-socket", "-publish-binary", "-debug", "-v"] {
            let listed = text.lines().any(|line| line.split_whitespace().next() == Some(flag));
            assert!(listed, "no {flag} in {text}");
        }
    }

    fn no_arguments_are_an_error(d) {
        assert_refused(&typed(d, &[]), "namespace cannot be empty");
    }

    fn no_arguments_print_the_help(d) {
        let output = typed(d, &[]);
        assert_refused(&output, "");
        assert_helps(&output.stderr_text());
    }

    fn unknown_action_error_lists_the_actions(d) {
        let output = typed(d, &["frobnicate"]);
        assert_refused(&output, "frobnicate");
        assert_refused(&output, "start");
        assert_refused(&output, "delete");
    }

    fn unknown_flag_error_names_the_flag(d) {
        assert_refused(&typed(d, &["-frobnicate", "start"]), "frobnicate");
    }

    fn actions_need_a_namespace(d) {
        for action in ["start", "delete"] {
            assert_refused(&typed(d, &[action]), "namespace cannot be empty");
        }
    }

    fn unknown_action_with_namespace_and_id_serves(d) {
        for word in ["frobnicate", "help"] {
            let (bundle, socket) = (d.container(word, &["true"]).bundle(), d.path(word));
            let mut command = d.command(word, &bundle);
            command.args(["-socket", socket.to_str().unwrap(), word]);
            command.stdin(Channel::null()).stdout(Channel::null()).stderr(Channel::null());
            let server = process::spawn(&mut command).id() as i32;
            d.eventually("a server", || rpc::Connection::open(socket.to_str().unwrap(), d.hang_timeout).is_ok());
            process::signal(server, nix::sys::signal::Signal::SIGKILL);
            process::wait(server, "the server's end", d.hang_timeout);
        }
    }

    fn version_prints_revision_target_and_compiler(d) {
        let output = typed(d, &["-v"]);
        let text = output.stdout_text();
        for name in ["Version:  ", "Revision: ", "Target:   ", "Compiler: rustc "] {
            let value = text.lines().find_map(|line| line.strip_prefix("  ")?.strip_prefix(name));
            assert!(value.is_some_and(|value| !value.is_empty()), "no {name} in {text}");
        }
        let machine = nix::sys::utsname::uname().unwrap().machine().to_str().unwrap().to_owned();
        assert!(text.contains(&machine), "no {machine} in {text}");
    }
}
