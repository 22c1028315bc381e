//! What runc, crun and youki word or do differently. The only place where text of
//! an OCI runtime is interpreted.

use serde::Deserialize;

/// One line of a runtime's JSON log: runc and crun write `msg`, youki `message`.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(alias = "message")]
    msg: String,
}

/// The last error in a runtime's JSON log. Lines that are no JSON are skipped:
/// youki leaves fragments of longer lines.
pub fn last_error(log: &[u8]) -> Option<String> {
    log.split(|byte| *byte == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .find(|line| line.level.eq_ignore_ascii_case("error"))
        .map(|line| line.msg)
}

/// Whether the text says that the runtime has no such container.
pub fn says_gone(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("does not exist")
        || text.contains("cannot open directory")
        || (text.contains("error opening file") && text.contains("no such file"))
}

/// Whether the text says that the process to signal has ended.
pub fn says_finished(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("process already finished")
        || text.contains("not running")
        || text.contains("no such process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_each_runtime() {
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
    fn a_log_without_an_error_has_none() {
        assert_eq!(last_error(b""), None);
        assert_eq!(
            last_error(b"{\"level\":\"info\",\"msg\":\"x\"}\n\xff{"),
            None
        );
    }

    #[test]
    fn every_runtimes_word_for_gone_and_finished() {
        for text in [
            "container does not exist",
            "container c1 does not exist.",
            "cannot open directory `/run/x`: No such file or directory",
            "error opening file `/run/x/status`: No such file or directory",
        ] {
            assert!(says_gone(text), "{text}");
        }
        for text in [
            "process already finished",
            "container not running",
            "open pidfd: No such process",
        ] {
            assert!(says_finished(text), "{text}");
            assert!(!says_gone(text), "{text}");
        }
        assert!(!says_gone("exec: \"x\": no such file or directory"));
    }
}
