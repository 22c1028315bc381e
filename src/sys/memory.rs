//! Memory: releasing what an idle process does not need.

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::ptr;
use std::slice;

use nix::unistd::{getpid, gettid};

use super::check;

/// Stack that the calls in this file need below the caller's frame, in bytes.
const OWN_FRAMES: usize = 2 << 10;

/// How far below the caller stack pages are released, in bytes. The kernel keeps other mappings
/// 128 MiB away from the main thread's stack.
const MAX_STACK: usize = 1 << 20;

/// Releases memory that this process does not need now; it goes on as before.
///
/// - The program's code and constants: the kernel maps them again, from its page cache, as
///   they are used. Until then they are not counted against the process.
/// - Of the main thread's stack, what lies below the caller: the deepest calls so far. On
///   another thread the stack is left alone.
pub fn release() -> io::Result<()> {
    release_program()?;
    release_stack()
}

fn release_program() -> io::Result<()> {
    let mut found = Segments::default();
    // SAFETY: the callback is given valid headers, and a pointer to `found`, which lives
    // until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(find_segments), (&raw mut found).cast()) };
    // Only now, as the headers are in one of them.
    for (start, end) in found.into_iter().flatten() {
        // SAFETY: a read-only mapping of the program's file, never written to, so that
        // what is mapped again is the same.
        unsafe { release_pages(start, end) }?;
    }
    Ok(())
}

/// Where the program's segments that are not writable begin and end: the headers, the code,
/// the constants.
type Segments = [Option<(usize, usize)>; 4];

/// For `dl_iterate_phdr`, which lists the program first, then its libraries.
unsafe extern "C" fn find_segments(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut c_void,
) -> libc::c_int {
    // SAFETY: the caller passes a valid object, and the pointer given to it.
    let (object, found) = unsafe { (&*object, &mut *found.cast::<Segments>()) };
    // SAFETY: the object has as many headers as it says.
    let headers = unsafe { slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    let read_only = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (header, slot) in read_only.zip(found) {
        let start = (object.dlpi_addr + header.p_vaddr) as usize;
        *slot = Some((start, start + header.p_memsz as usize));
    }
    1
}

#[inline(never)]
fn release_stack() -> io::Result<()> {
    if gettid() != getpid() {
        return Ok(());
    }
    let frame = 0u8;
    let here = ptr::from_ref(black_box(&frame)) as usize;
    let end = here.saturating_sub(OWN_FRAMES);
    // Up to the page that holds `end`, without it.
    let end = end & !(page_size() - 1);
    // SAFETY: nothing lives below the frames in here but pages of this stack that no call
    // uses any more; the next calls find zeros there, and expect nothing.
    match unsafe { release_pages(end.saturating_sub(MAX_STACK), end) } {
        // Most of it was never mapped; the rest is released all the same.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(()),
        released => released,
    }
}

/// # Safety
/// Nobody may need what was written to the pages from `start` to `end`.
unsafe fn release_pages(start: usize, end: usize) -> io::Result<()> {
    let start = start & !(page_size() - 1);
    // SAFETY: the caller vouches for the pages.
    check(unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) })?;
    Ok(())
}

fn page_size() -> usize {
    // SAFETY: the call takes a number and returns one.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
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
    fn program_continues_after_release() {
        let fell = || {
            let before = resident();
            release().unwrap();
            resident() < before
        };
        assert!((0..100).any(|_| fell()));
    }
}
