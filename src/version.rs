//! Which build this is: two of one release differ by their commits. `build.rs` says where the commit comes from.

/// The release.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The first twelve digits of the commit that it was built from, or `unknown`.
pub(crate) const COMMIT: &str = env!("TIDELOG_COMMIT");

/// Both, for people.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TIDELOG_COMMIT"), ")");
