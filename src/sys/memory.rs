//! Memory: giving back what is not needed at rest.

use std::io;
use std::ptr;

/// Unmaps this program's code from the process: the kernel maps it again, from its
/// page cache, as it is run. What only a start needed is no longer counted against
/// the process, nor in the way of reclaim.
pub fn release_code() -> io::Result<()> {
    const PAGE: usize = 4096;
    // SAFETY: the linker defines both symbols; only their addresses are taken.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let start = ptr::addr_of!(__executable_start) as usize & !(PAGE - 1);
    let end = ptr::addr_of!(etext) as usize & !(PAGE - 1);
    // SAFETY: the range is the program's headers and code: a read-only mapping of its
    // file, never written to, so that what is mapped again is the same.
    let rc = unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident pages of mapped files, as `/proc/self/statm` counts them.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(2).unwrap().parse().unwrap()
    }

    /// Other tests run meanwhile and map some again.
    #[test]
    fn the_program_runs_on_with_less_mapped() {
        let fell = || {
            let before = resident();
            release_code().unwrap();
            resident() < before
        };
        assert!((0..100).any(|_| fell()));
    }
}
