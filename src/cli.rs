//! Parses the command line and the environment that containerd gives, to an [`Action`]. Pure:
//! it reads nothing else.
//!
//! Promises: Go's flag syntax (`-x v`, `--x v`, `-x=v`), every flag that a
//! containerd from 1.6 on sends, and the same errors as Go's shim. A person, who gives neither
//! `-namespace` nor `-id`, gets help, or an error that lists the actions.

use std::ffi::{OsStr, OsString};

use crate::error::{Error, Result};
use crate::{NAME, VERSION};

/// Environment variable. Set to `json` it makes `start` reply in JSON, with version 3, to a
/// containerd that sends no bootstrap message. Only containerd 2.0 to 2.2 understand that, not
/// 1.6 and 1.7, and `start` cannot tell them apart.
pub const REPLY_VARIABLE: &str = "CONTAINERD_SHIM_RS_REPLY";

/// What this process was started to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the server of a container, or find the one of its pod.
    Start(Flags),
    /// Serve.
    Serve(Flags),
    /// Clean up after a server that has ended.
    Delete(Flags),
    /// List the servers that run on this machine.
    Ps {
        /// As JSON.
        json: bool,
    },
    /// Print all that is known of the server of a container.
    Inspect {
        /// The container.
        id: String,
    },
    /// Print what this machine offers, and what is to be mended.
    Check {
        /// As JSON.
        json: bool,
    },
    /// Describe this shim and the OCI runtime.
    Info,
    /// Print the version.
    Version,
    /// Print [`help`], as asked for.
    Help,
    /// Print [`help`] and fail: a person typed the program's name and no action.
    NoAction,
}

/// What the command line and the environment say; empty where they say nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`; never empty.
    pub namespace: String,
    /// `-id`: the container; never empty.
    pub id: String,
    /// `-address`: containerd's gRPC socket, a plain path.
    pub address: String,
    /// `-bundle`: sent with `delete` only; the working directory is the same.
    pub bundle: String,
    /// `-socket`: a path to serve on, in place of the inherited descriptor 3.
    pub socket: String,
    /// `-debug`: log more.
    pub debug: bool,
    /// `TTRPC_ADDRESS`: containerd's socket for events.
    pub ttrpc_address: String,
    /// `SCHED_CORE`: give the server a core-scheduling cookie.
    pub sched_core: bool,
    /// [`REPLY_VARIABLE`]: reply in JSON to a containerd before 2.3.
    pub json_reply: bool,
    /// `MAX_SHIM_VERSION` is set: containerd is 1.7 or newer, and understands a reply in JSON.
    pub knows_json: bool,
}

/// The text of `--help`.
pub fn help() -> String {
    format!(
        "\
{NAME} {VERSION}

A containerd runtime v2 shim for runc, crun and youki. containerd starts it for
each container or pod; people do not. Install it in a directory of containerd's
PATH, then ask for its runtime:

  ctr run --runtime io.containerd.rs.v2 IMAGE CONTAINER
  docker run --runtime io.containerd.rs.v2 IMAGE
  CRI, in config.toml: runtime_type = \"io.containerd.rs.v2\"

Usage:
  {NAME} -namespace NAME -id ID [FLAG...] [ACTION]
  {NAME} check [--json]
  {NAME} ps [--json]
  {NAME} inspect ID
  {NAME} -info | -v | -h

Actions:
  check    print what this machine offers, and what is to be mended
  ps       list the servers that run on this machine
  inspect  print the state of the server that has container ID, as JSON
  start    find or start the server of the container, print its address
  delete   clean up after a server that is gone
  (none)   serve the Task API, on the socket that start leaves open

  -info    print what the OCI runtime supports, as protobuf
  -v       print the version and how this was built
  -h       print this

Flags, which containerd sets:
  -namespace NAME         containerd's namespace
  -id ID                  the container
  -address PATH           containerd's gRPC socket
  -bundle PATH            the bundle, with delete
  -socket PATH            serve on this socket
  -publish-binary PATH    accepted and not used
  -debug                  log more

Environment:
  TTRPC_ADDRESS           containerd's socket for events
  SCHED_CORE              if set: core scheduling
  {REPLY_VARIABLE}
                          json: answer containerd 2.0 to 2.2 in JSON
"
    )
}

/// Whether a person asks for help. containerd sends none of these words, not even as a flag's
/// value.
fn asks_for_help(args: &[OsString]) -> bool {
    let words = ["-h", "--h", "-help", "--help"];
    args.iter().any(|arg| words.iter().any(|word| arg == word))
}

/// The actions that only people use: they come before any flag, which containerd's never do.
fn for_people(args: &[OsString]) -> Option<Result<Action>> {
    let words: Vec<&str> = args.iter().map_while(|arg| arg.to_str()).collect();
    match words[..] {
        ["check"] => Some(Ok(Action::Check { json: false })),
        ["check", "--json" | "-json"] => Some(Ok(Action::Check { json: true })),
        ["check", ..] => Some(Err(Error::invalid("check takes --json only, see --help"))),
        ["ps"] => Some(Ok(Action::Ps { json: false })),
        ["ps", "--json" | "-json"] => Some(Ok(Action::Ps { json: true })),
        ["ps", ..] => Some(Err(Error::invalid("ps takes --json only, see --help"))),
        ["inspect", id] if !id.is_empty() => Some(Ok(Action::Inspect { id: id.into() })),
        ["inspect", ..] => Some(Err(Error::invalid("inspect takes one ID, see --help"))),
        _ => None,
    }
}

/// The action of a person, who gives neither `-namespace` nor `-id`. From containerd, any other
/// word is the server's action, as with Go's shim.
fn action_of_a_person(action: &str) -> Result<Action> {
    match action {
        "" => Ok(Action::NoAction),
        "help" => Ok(Action::Help),
        "start" | "delete" => Err(Error::invalid(format!(
            "shim namespace cannot be empty: {action} needs -namespace and -id, see --help"
        ))),
        _ => Err(Error::invalid(format!(
            "unknown action {action:?}: the actions are check, ps, inspect, start and delete, see --help"
        ))),
    }
}

/// Parses the arguments (without the program's name) and the environment. An error is
/// Kind::InvalidArgument.
pub fn parse(args: &[OsString], env: impl Fn(&str) -> Option<OsString>) -> Result<Action> {
    if asks_for_help(args) {
        return Ok(Action::Help);
    }
    if let Some(action) = for_people(args) {
        return action;
    }
    let parsed = containerd_shim::parse(&without_debug_socket(args))
        .map_err(|e| Error::invalid(format!("{e}; see --help")))?;
    if parsed.version {
        return Ok(Action::Version);
    }
    if parsed.info {
        return Ok(Action::Info);
    }
    if parsed.namespace.is_empty() && parsed.id.is_empty() {
        return action_of_a_person(&parsed.action);
    }
    if parsed.namespace.is_empty() {
        return Err(Error::invalid("shim namespace cannot be empty"));
    }
    // Go's shim accepts that, and then works on the directory that holds all bundles.
    if parsed.id.is_empty() {
        return Err(Error::invalid("shim id cannot be empty"));
    }
    let text = |name| -> String {
        env(name)
            .map(|v| v.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let flags = Flags {
        namespace: parsed.namespace,
        id: parsed.id,
        address: parsed.address,
        bundle: parsed.bundle,
        socket: parsed.socket,
        debug: parsed.debug,
        ttrpc_address: text("TTRPC_ADDRESS"),
        sched_core: !text("SCHED_CORE").is_empty(),
        knows_json: env("MAX_SHIM_VERSION").is_some(),
        json_reply: match text(REPLY_VARIABLE).as_str() {
            "" | "plain" => false,
            "json" => true,
            other => {
                let message = format!("{REPLY_VARIABLE}={other}: must be plain or json");
                return Err(Error::invalid(message));
            }
        },
    };
    Ok(match parsed.action.as_str() {
        "start" => Action::Start(flags),
        "delete" => Action::Delete(flags),
        // As Go's shim does.
        _ => Action::Serve(flags),
    })
}

/// The arguments without `-debug-socket` and its value: Go's shim has it for its profiler, and
/// the crate's parser does not know it.
fn without_debug_socket(args: &[OsString]) -> Vec<&OsStr> {
    let mut kept = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-debug-socket" | "--debug-socket") => _ = args.next(),
            Some(a) if a.starts_with("-debug-socket=") || a.starts_with("--debug-socket=") => {}
            _ => kept.push(arg.as_os_str()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(line: &str, env: &[(&str, &str)]) -> Result<Action> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&args, |name| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    fn flags() -> Flags {
        Flags {
            namespace: "k8s.io".into(),
            id: "c1".into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Flags::default()
        }
    }

    const LINE: &str = "-namespace k8s.io -address /run/containerd/containerd.sock \
        -publish-binary /usr/bin/containerd -id c1";

    #[test]
    fn start_line_of_each_containerd() {
        let env = [("TTRPC_ADDRESS", "/run/t.sock"), ("SCHED_CORE", "1")];
        let expected = Flags {
            debug: true,
            ttrpc_address: "/run/t.sock".into(),
            sched_core: true,
            ..flags()
        };
        let got = action(&format!("{LINE} -debug start"), &env);
        assert_eq!(got, Ok(Action::Start(expected)));
        assert_eq!(
            action(&format!("{LINE} start"), &[]),
            Ok(Action::Start(flags()))
        );
    }

    #[test]
    fn delete_has_a_bundle() {
        let expected = Flags {
            bundle: "/b/c1".into(),
            ..flags()
        };
        let got = action(&format!("{LINE} -bundle /b/c1 delete"), &[]);
        assert_eq!(got, Ok(Action::Delete(expected)));
    }

    #[test]
    fn no_action_or_an_unknown_one_serves() {
        assert_eq!(action(LINE, &[]), Ok(Action::Serve(flags())));
        let got = action(&format!("{LINE} frobnicate"), &[]);
        assert_eq!(got, Ok(Action::Serve(flags())));
    }

    #[test]
    fn every_spelling_of_a_flag() {
        let line = "--namespace=k8s.io -address=/run/containerd/containerd.sock --id c1 -debug=false -socket /s";
        let expected = Flags {
            socket: "/s".into(),
            ..flags()
        };
        assert_eq!(action(line, &[]), Ok(Action::Serve(expected)));
    }

    #[test]
    fn debug_socket_is_accepted_and_ignored() {
        for flag in [
            "-debug-socket /d",
            "--debug-socket /d",
            "-debug-socket=/d",
            "--debug-socket=/d",
            "-debug-socket",
        ] {
            let got = action(&format!("{LINE} {flag}"), &[]);
            assert_eq!(got, Ok(Action::Serve(flags())), "{flag}");
        }
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        for line in ["-v", "-version", "--version", "-v start"] {
            assert_eq!(action(line, &[]), Ok(Action::Version), "{line}");
        }
        assert_eq!(action("-info", &[]), Ok(Action::Info));
    }

    #[test]
    fn refusals() {
        let text = |line: &str, env: &[(&str, &str)]| action(line, env).unwrap_err().to_string();
        assert_eq!(text("-id x start", &[]), "shim namespace cannot be empty");
        assert_eq!(text("-namespace x start", &[]), "shim id cannot be empty");
        let unknown = text("-nonsense start", &[]);
        assert!(
            unknown.contains("nonsense") && unknown.contains("--help"),
            "{unknown}"
        );
        assert_eq!(
            text(LINE, &[(REPLY_VARIABLE, "xml")]),
            "CONTAINERD_SHIM_RS_REPLY=xml: must be plain or json"
        );
    }

    #[test]
    fn help_is_for_people() {
        for line in [
            "-h",
            "--h",
            "-help",
            "--help",
            "help",
            "start --help",
            "-debug -h",
            "-v -h",
        ] {
            assert_eq!(action(line, &[]), Ok(Action::Help), "{line}");
        }
        for line in ["", "-debug"] {
            assert_eq!(action(line, &[]), Ok(Action::NoAction), "{line}");
        }
        let got = action(&format!("{LINE} help"), &[]);
        assert_eq!(got, Ok(Action::Serve(flags())), "containerd's line");
    }

    #[test]
    fn errors_for_people_list_the_actions() {
        let text = |line: &str| action(line, &[]).unwrap_err().to_string();
        assert_eq!(
            text("frobnicate"),
            "unknown action \"frobnicate\": the actions are check, ps, inspect, start and delete, see --help"
        );
        for line in ["start", "delete", "-debug start"] {
            let error = text(line);
            assert!(
                error.starts_with("shim namespace cannot be empty: "),
                "{error}"
            );
        }
    }

    #[test]
    fn actions_of_people() {
        for (line, expected) in [
            ("check", Action::Check { json: false }),
            ("check --json", Action::Check { json: true }),
            ("ps", Action::Ps { json: false }),
            ("ps --json", Action::Ps { json: true }),
            ("inspect c1", Action::Inspect { id: "c1".into() }),
        ] {
            assert_eq!(action(line, &[]), Ok(expected), "{line}");
        }
        for line in ["check c1", "ps c1", "inspect", "inspect a b"] {
            let error = action(line, &[]).unwrap_err().to_string();
            assert!(error.ends_with("see --help"), "{line}: {error}");
        }
        let got = action(&format!("{LINE} ps"), &[]);
        assert_eq!(got, Ok(Action::Serve(flags())), "containerd's line");
    }

    #[test]
    fn help_lists_every_flag_that_is_parsed() {
        let help = help();
        for flag in [
            "-namespace",
            "-id",
            "-address",
            "-bundle",
            "-socket",
            "-publish-binary",
            "-debug",
            "-info",
            "-v",
            "-h",
        ] {
            assert!(help.contains(&format!("\n  {flag} ")), "{flag}");
        }
        for variable in ["TTRPC_ADDRESS", "SCHED_CORE", REPLY_VARIABLE] {
            assert!(help.contains(variable), "{variable}");
        }
        assert!(help.lines().all(|line| line.len() <= 80), "{help}");
    }

    #[test]
    fn json_reply_is_opt_in() {
        let expected = Flags {
            json_reply: true,
            ..flags()
        };
        let got = action(&format!("{LINE} start"), &[(REPLY_VARIABLE, "json")]);
        assert_eq!(got, Ok(Action::Start(expected)));
    }
}
