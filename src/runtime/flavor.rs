//! Differences between runc, crun and youki in what they log and print. Only this file
//! interprets text of an OCI runtime. To support another runtime: add its texts here.

use serde::Deserialize;

/// One line of a runtime's JSON log: runc and crun write `msg`, youki `message`.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(alias = "message")]
    msg: String,
}

/// The last error in a runtime's JSON log. Other lines are skipped: youki leaves fragments of
/// longer lines.
pub fn last_error(log: &[u8]) -> Option<String> {
    log.split(|byte| *byte == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .find(|line| line.level.eq_ignore_ascii_case("error"))
        .map(|line| line.msg)
}

/// The first error in a CRIU log: it causes those that follow.
pub fn criu_error(log: &str) -> Option<&str> {
    // `(SECONDS) Error (FILE:LINE): TEXT`; those of the restored processes have a pid before.
    log.lines().find_map(|line| {
        let (_, error) = line.split_once("Error (")?;
        Some(error.split_once("): ")?.1.trim())
    })
}

/// Whether the text says that the runtime has no such container.
pub fn says_no_such_container(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("does not exist")
        || text.contains("cannot open directory")
        || (text.contains("error opening file") && text.contains("no such file"))
}

/// Whether the text says that the process to signal has exited.
pub fn says_process_finished(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("process already finished")
        || text.contains("not running")
        || text.contains("no such process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_error_of_each_runtime() {
        let runc = br#"{"level":"warning","msg":"w","time":"t"}
{"level":"error","msg":"first"}
{"level":"error","msg":"exec failed: no such file","time":"t"}
"#;
        assert_eq!(last_error(runc).unwrap(), "exec failed: no such file");
        let crun = br#"{"msg":"executable file `x` not found","level":"error","time":"t"}"#;
        assert_eq!(last_error(crun).unwrap(), "executable file `x` not found");
        let youki = br#"{"timestamp":"t","level":"ERROR","message":"failed to start"}
nger line", "x":1}
"#;
        assert_eq!(last_error(youki).unwrap(), "failed to start");
    }

    #[test]
    fn log_without_an_error() {
        assert_eq!(last_error(b""), None);
        assert_eq!(
            last_error(b"{\"level\":\"info\",\"msg\":\"x\"}\n\xff{"),
            None
        );
    }

    #[test]
    fn first_error_of_criu() {
        let log = "(00.000007) Version: 3.17.1 (gitid 0)\n\
            (00.000016) Warn  (criu/kerndat.c:1103): $XDG_RUNTIME_DIR not set.\n\
            (00.104233) Error (criu/sk-inet.c:191): inet: Connected TCP socket\n\
            (00.110000) Error (criu/cr-dump.c:1781): Dumping FAILED.\n";
        assert_eq!(criu_error(log), Some("inet: Connected TCP socket"));
        let log = "(00.047041)     12: Error (criu/files.c:1): Can't open file\n";
        assert_eq!(criu_error(log), Some("Can't open file"));
        assert_eq!(criu_error("(00.000007) Version: 3.17.1\n"), None);
    }

    #[test]
    fn texts_of_each_runtime_for_no_container_and_finished() {
        for text in [
            "container does not exist",
            "container c1 does not exist.",
            "cannot open directory `/run/x`: No such file or directory",
            "error opening file `/run/x/status`: No such file or directory",
        ] {
            assert!(says_no_such_container(text), "{text}");
        }
        for text in [
            "process already finished",
            "container not running",
            "open pidfd: No such process",
        ] {
            assert!(says_process_finished(text), "{text}");
            assert!(!says_no_such_container(text), "{text}");
        }
        assert!(!says_no_such_container(
            "exec: \"x\": no such file or directory"
        ));
    }
}
