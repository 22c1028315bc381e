//! Where other shims fail this suite, and why that is meant. Run against one of
//! them, exactly these cases have to fail; against ours, none.

/// The shim under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    Ours,
    /// containerd 1.x's.
    Go1,
    /// containerd 2.x's.
    Go2,
}

/// One case that a shim fails.
pub struct Difference {
    pub case: &'static str,
    pub shims: &'static [Shim],
    /// It depends on the weather: passing is no surprise.
    pub sometimes: bool,
    pub reason: &'static str,
}

/// The row for `case`, if there is one.
pub fn find(case: &str, shim: Shim, _runtime: &str) -> Option<&'static Difference> {
    TABLE
        .iter()
        .find(|row| row.case == case && row.shims.contains(&shim))
}

const TABLE: &[Difference] = &[];
