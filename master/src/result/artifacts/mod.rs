//! Artefacts: files that a job leaves in the object store, under names that a stranger chose.
//!
//! ```text
//!  session ─name─► check_name ─► not taken? ─► ArtifactUpload::store ─► artifacts/<repository>/<build-12>/<suite>/<platform>/<path>
//!          ─bytes──────────────────────────────────┘   SHA-256, size              …/manifest.json, last
//!                                                                                 rows in `artifacts`
//! ```
//!
//! A manifest says that the upload is whole: whoever fetches artefacts waits for it, and finds size and SHA-256 of each
//! file in it.

mod name;
mod upload;

pub use name::{ArtifactName, NameError, check_name};
pub use upload::{ArtifactError, ArtifactUpload, Caps, Entry, Fault, Manifest};
