//! A small volume named `cidata`: ISO 9660 with Rock Ridge and Joliet, which every system reads.

use hadris_iso::joliet::JolietLevel;
use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{BaseIsoLevel, CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{InputEntry, InputTree, IsoCreationError, IsoImageWriter};
use std::io::Cursor;

/// What NoCloud looks for.
const NAME: &str = "cidata";

/// The volume's bytes.
pub(super) fn make(files: &[(&str, String)]) -> Result<Vec<u8>, IsoCreationError> {
    let entries = files
        .iter()
        .map(|(name, text)| InputEntry::file(*name, text.as_bytes()))
        .collect();
    let tree = InputTree::new(PathSeparator::ForwardSlash, entries);
    let options = IsoFormatOptions {
        volume_name: NAME.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: 2048,
        path_separator: PathSeparator::ForwardSlash,
        // It would be CIDATA, which some look for and others do not.
        strict_charset: false,
        features: CreationFeatures {
            filenames: BaseIsoLevel::Level1 {
                supports_lowercase: false,
                supports_rrip: true,
            },
            joliet: Some(JolietLevel::Level3),
            rock_ridge: Some(RripOptions::default()),
            ..CreationFeatures::default()
        },
    };
    let image = IsoImageWriter::create(Cursor::new(Vec::new()), tree, options)?;
    Ok(image.into_inner())
}
