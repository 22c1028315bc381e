//! How the tables of faults are written: each row becomes a test of the same name.

/// Declares faults: functions that get a [`crate::harness::Daemon`]. `$group` is the module's path.
macro_rules! faults {
    ($group:literal; $(fn $name:ident($daemon:ident) $body:block)*) => {
        pub const TABLE: &[&str] = &[$(concat!($group, "::", stringify!($name))),*];
        $(#[test] fn $name() {
            crate::verdict::hold(concat!($group, "::", stringify!($name)), |$daemon| $body);
        })*
    };
}

/// Declares the faults that `$run` makes of words: one for each word, verb and moment. `$group` is
/// the module's path.
macro_rules! product {
    ($group:literal, $run:path; $($word:ident { $($verb:ident: $($moment:ident)*;)* })*) => {
        pub const TABLE: &[&str] = &[$($($(concat!(
            $group, "::", stringify!($word), "::", stringify!($verb), "::", stringify!($moment)
        ),)*)*)*];
        $(mod $word { $(mod $verb { $(
            #[test]
            fn $moment() {
                let name = concat!(
                    $group, "::", stringify!($word), "::", stringify!($verb), "::", stringify!($moment)
                );
                crate::verdict::hold(name, |daemon| {
                    $run(daemon, stringify!($word), stringify!($verb), stringify!($moment));
                });
            }
        )* })* })*
    };
}
