//! What the benchmark's containers run; `hack/bench` compiles it, static.
//!
//! - `write BLOCK TOTAL`: writes so many bytes to stdout, in such blocks;
//! - `read TOTAL`: reads so many from stdin, as fast as the kernel can.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["write", block, total] => write(number(block), number(total)),
        ["read", total] => read(number(total)),
        _ => panic!("write BLOCK TOTAL, or read TOTAL"),
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

fn write(block: usize, total: usize) -> io::Result<()> {
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let block = vec![b'x'; block];
    for _ in 0..total / block.len() {
        stdout.write_all(&block)?;
    }
    Ok(())
}

fn read(total: usize) -> io::Result<()> {
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut null = OpenOptions::new().write(true).open("/dev/null")?;
    // Between files, this is splice(2).
    let read = io::copy(&mut stdin.take(total as u64), &mut null)?;
    assert_eq!(read, total as u64, "stdin ended");
    Ok(())
}
