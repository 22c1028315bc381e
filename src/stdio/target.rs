//! What a stdio URI means. Pure.
//!
//! Promises: every URI that containerd's clients make is understood, and any other is
//! an error that says why.
//!
//! Lacks on purpose: any look at the file system.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::logger::Program;
use crate::error::{Error, Result};

/// Where a stream comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nowhere.
    None,
    /// A FIFO, or what stands in its place; it exists.
    Path(PathBuf),
    /// A file to append to; it is made.
    File(PathBuf),
    /// A program that reads.
    Logger(Program),
}

impl Target {
    /// Understands a path or URI; only URIs are percent-encoded.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = split_scheme(text) else {
            return Ok(match text {
                "" => Self::None,
                path => Self::Path(path.into()),
            });
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = || absolute_path(text, path);
        let scheme = scheme.to_ascii_lowercase();
        Ok(match scheme.as_str() {
            "fifo" => Self::Path(path()?),
            "file" => Self::File(path()?),
            "binary" | "binary-v2" => Self::Logger(Program {
                path: path()?,
                arguments: arguments(text, query)?,
                must_say_ready: scheme == "binary-v2",
            }),
            // Go's shim has no code for it.
            other => return Err(Error::unknown(format!("unknown STDIO scheme {other}"))),
        })
    }
}

/// Splits `SCHEME:REST`; `None` for a path.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let inner = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(inner))
        .then_some((scheme, rest))
}

fn absolute_path(uri: &str, path: &str) -> Result<PathBuf> {
    let path = path.strip_prefix("//").unwrap_or(path);
    if !path.starts_with('/') {
        return Err(Error::invalid(format!("{uri}: path is not absolute")));
    }
    Ok(decode(uri, path, false)?.into())
}

/// Each key and value of a query, in its order; a value that is not there is empty.
fn arguments(uri: &str, query: &str) -> Result<Vec<OsString>> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decode(uri, key, true)?);
        arguments.push(decode(uri, value, true)?);
    }
    Ok(arguments)
}

/// Undoes percent-encoding; in a query a plus is a space.
fn decode(uri: &str, text: &str, query: bool) -> Result<OsString> {
    let invalid = |what| Error::invalid(format!("{uri}: {what}"));
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(invalid("invalid percent-encoding")),
                }
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    if decoded.contains(&0) {
        return Err(invalid("contains a NUL byte"));
    }
    Ok(OsString::from_vec(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn paths_are_not_decoded() {
        assert_eq!(parse(""), Target::None);
        for path in ["/run/f/1-stdout", "/a%20b?c#d:e", "relative"] {
            assert_eq!(parse(path), Target::Path(path.into()), "{path}");
        }
    }

    #[test]
    fn uris_are_decoded() {
        assert_eq!(parse("fifo:///run/a"), Target::Path("/run/a".into()));
        assert_eq!(parse("file:///a%20b+c%2f"), Target::File("/a b+c/".into()));
        assert_eq!(parse("FILE:/a?b#c"), Target::File("/a".into()));
    }

    #[test]
    fn arguments_keep_the_order_of_the_uri() {
        let program = |must_say_ready, arguments: &[&str]| {
            Target::Logger(Program {
                path: "/bin/log".into(),
                arguments: arguments.iter().map(OsString::from).collect(),
                must_say_ready,
            })
        };
        assert_eq!(parse("binary:///bin/log"), program(false, &[]));
        assert_eq!(
            parse("binary-v2:///bin/log?z=1&a=x%3Dy&&-v&b=c+d&z=2"),
            program(
                true,
                &["z", "1", "a", "x=y", "-v", "", "b", "c d", "z", "2"]
            )
        );
    }

    #[test]
    fn unknown_uris_are_errors() {
        for (text, part) in [
            (
                "ttrpc+unix:///a?stream_id=1",
                "unknown STDIO scheme ttrpc+unix",
            ),
            ("gopher://a/b", "unknown STDIO scheme gopher"),
            ("file://host/a", "file://host/a: path is not absolute"),
            ("file://", "not absolute"),
            ("binary:///a%2", "invalid percent-encoding"),
            ("binary:///a?b=%zz", "invalid percent-encoding"),
            ("file:///a%00", "contains a NUL byte"),
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
