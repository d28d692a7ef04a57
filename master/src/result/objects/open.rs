//! From an address and options to a store of the crate `object_store`.
//!
//! ```text
//!  "/var/lib/vivarium/objects" ─┐
//!  "file:///…" ─────────────────┴─► folder, created, written with fsync
//!  "s3://bucket/prefix" ──┐
//!  "gs://bucket/prefix" ──┼─► environment, then options ─► client with bounded retries ─► prefix
//!  "az://container/…" ────┘
//! ```

use super::ObjectError;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreScheme, RetryConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// A request is repeated this often: a hiccup is sat out. Results wait for the end of an outage by other means, and a
/// reader wants to be told.
const MAX_RETRIES: usize = 3;
/// Nothing is repeated after this time.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) folder: Option<LocalFileSystem>,
    pub(super) place: String,
}

pub(super) fn open(
    address: &str,
    options: &BTreeMap<String, String>,
) -> Result<Opened, ObjectError> {
    if !address.contains("://") {
        return open_folder(Path::new(address), address, options);
    }
    let url: Url = address.parse().map_err(|e| ObjectError::Url {
        url: address.to_string(),
        reason: format!("it is no URL: {e}"),
    })?;
    let place = without_secrets(&url);
    let refuse = |reason: &str| ObjectError::Url {
        url: place.clone(),
        reason: reason.to_string(),
    };
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|_| {
        refuse("expected a folder's path, or a URL with file://, s3://, gs:// or az://")
    })?;
    let request = Request {
        url: &url,
        place: &place,
        options,
    };
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => {
            let path = url
                .to_file_path()
                .map_err(|()| refuse("the path must be absolute: file:///folder"))?;
            return open_folder(&path, &place, options);
        }
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env()
                .with_url(url.as_str())
                // Not every compatible server deletes several objects at once, and we delete one by one.
                .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
            let builder = request.apply(builder, AmazonS3Builder::with_config, S3_KEYS)?;
            request.built(builder.with_retry(retry()).build())?
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
            let builder =
                request.apply(builder, GoogleCloudStorageBuilder::with_config, GCS_KEYS)?;
            request.built(builder.with_retry(retry()).build())?
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str());
            let builder = request.apply(builder, MicrosoftAzureBuilder::with_config, AZURE_KEYS)?;
            request.built(builder.with_retry(retry()).build())?
        }
        // The enum is open: whatever else it comes to know is no store that keeps things for us.
        _ => {
            return Err(refuse(
                "only file://, s3://, gs:// and az:// are known; for an S3-compatible server use s3://bucket \
                 with the option aws_endpoint",
            ));
        }
    };
    let store = match prefix.as_ref() {
        "" => store,
        _ => Arc::new(PrefixStore::new(store, prefix)),
    };
    Ok(Opened {
        store,
        folder: None,
        place,
    })
}

fn open_folder(
    path: &Path,
    place: &str,
    options: &BTreeMap<String, String>,
) -> Result<Opened, ObjectError> {
    if let Some(key) = options.keys().next() {
        return Err(ObjectError::Option {
            url: place.to_string(),
            key: key.clone(),
            reason: "a folder has no options".to_string(),
        });
    }
    let error = |path: &Path, source| ObjectError::Folder {
        path: path.display().to_string(),
        source,
    };
    std::fs::create_dir_all(path).map_err(|e| error(path, e))?;
    let path = path.canonicalize().map_err(|e| error(path, e))?;
    let store = LocalFileSystem::new_with_prefix(&path)
        .map_err(|source| ObjectError::Open {
            url: place.to_string(),
            source: Box::new(source),
        })?
        // A sealed log's segments are removed once its object is stored: it must outlive a power cut.
        .with_fsync(true)
        // Of a set that was removed no folders stay.
        .with_automatic_cleanup(true);
    Ok(Opened {
        store: Arc::new(store.clone()),
        folder: Some(store),
        place: path.display().to_string(),
    })
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    }
}

/// The URL without user, password and query: any of them may hold a key.
fn without_secrets(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    if shown.password().is_some() && shown.set_password(None).is_err() {
        return format!("{}://…", url.scheme());
    }
    shown.to_string()
}

/// The names that are suggested for a mistyped option; the crate itself knows more.
const S3_KEYS: &[&str] = &[
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_region",
    "aws_endpoint",
    "aws_virtual_hosted_style_request",
    "aws_skip_signature",
    "aws_checksum_algorithm",
    "aws_unsigned_payload",
    "aws_disable_bulk_delete",
    "aws_server_side_encryption",
    "aws_sse_kms_key_id",
    "allow_http",
    "timeout",
    "connect_timeout",
    "proxy_url",
];
const GCS_KEYS: &[&str] = &[
    "google_service_account",
    "google_service_account_key",
    "google_application_credentials",
    "google_base_url",
    "google_skip_signature",
    "allow_http",
    "timeout",
    "connect_timeout",
    "proxy_url",
];
const AZURE_KEYS: &[&str] = &[
    "azure_storage_account_name",
    "azure_storage_account_key",
    "azure_storage_client_id",
    "azure_storage_client_secret",
    "azure_storage_tenant_id",
    "azure_storage_sas_key",
    "azure_storage_endpoint",
    "azure_skip_signature",
    "allow_http",
    "timeout",
    "connect_timeout",
    "proxy_url",
];

/// What is being opened, for the parts that the three clouds share.
struct Request<'a> {
    url: &'a Url,
    place: &'a str,
    options: &'a BTreeMap<String, String>,
}

/// A kind of key that one cloud's builder understands.
trait ConfigKey: std::str::FromStr {}
impl ConfigKey for AmazonS3ConfigKey {}
impl ConfigKey for GoogleConfigKey {}
impl ConfigKey for AzureConfigKey {}

impl Request<'_> {
    fn apply<B, K: ConfigKey>(
        &self,
        builder: B,
        with: impl Fn(B, K, String) -> B,
        known: &[&str],
    ) -> Result<B, ObjectError> {
        let mut builder = builder;
        for (name, value) in self.options {
            let key: K = name
                .to_ascii_lowercase()
                .parse()
                .map_err(|_| self.unknown(name, known))?;
            builder = with(builder, key, value.clone());
        }
        Ok(builder)
    }

    fn unknown(&self, name: &str, known: &[&str]) -> ObjectError {
        let nearest = known
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
        let hint = nearest.map_or_else(String::new, |key| format!("; hint: `{key}` is one"));
        ObjectError::Option {
            url: self.place.to_string(),
            key: name.to_string(),
            reason: format!("{}:// has no such option{hint}", self.url.scheme()),
        }
    }

    fn built<S: ObjectStore>(
        &self,
        built: object_store::Result<S>,
    ) -> Result<Arc<dyn ObjectStore>, ObjectError> {
        match built {
            Ok(store) => Ok(Arc::new(store)),
            Err(source) => Err(ObjectError::Open {
                url: self.place.to_string(),
                source: Box::new(source),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Objects;
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[tokio::test]
    async fn a_folder_is_created_and_passes_the_check() {
        let dir = tempfile::tempdir().unwrap();
        for address in [
            dir.path().join("plain").display().to_string(),
            format!("file://{}/by-url", dir.path().display()),
        ] {
            let objects = Objects::open(&address, &BTreeMap::new()).unwrap();
            objects.check().await.unwrap();
            assert_eq!(objects.list("").await.unwrap(), []);
        }
        assert!(dir.path().join("plain").is_dir());
        assert!(dir.path().join("by-url").is_dir());
    }

    #[test]
    fn a_mistyped_option_is_refused_with_the_nearest_one() {
        let error =
            Objects::open("s3://bucket", &options(&[("aws_endpont", "http://x")])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("aws_endpont") && text.contains("hint: `aws_endpoint`"),
            "{text}"
        );
    }

    #[test]
    fn every_option_that_is_suggested_exists() {
        assert!(
            S3_KEYS
                .iter()
                .all(|key| key.parse::<AmazonS3ConfigKey>().is_ok())
        );
        assert!(
            GCS_KEYS
                .iter()
                .all(|key| key.parse::<GoogleConfigKey>().is_ok())
        );
        assert!(
            AZURE_KEYS
                .iter()
                .all(|key| key.parse::<AzureConfigKey>().is_ok())
        );
    }

    #[test]
    fn secrets_do_not_show() {
        let objects = Objects::open(
            "s3://bucket/prefix",
            &options(&[
                ("aws_access_key_id", "AKIDSECRET"),
                ("aws_secret_access_key", "TOPSECRET"),
                ("aws_region", "eu-central-1"),
            ]),
        )
        .unwrap();
        let shown = format!("{objects:?} {objects}");
        assert!(!shown.contains("SECRET"), "{shown}");
        assert!(shown.contains("s3://bucket/prefix"));
    }

    #[test]
    fn other_addresses_are_refused_with_a_sentence() {
        for address in [
            "ftp://host/x",
            "https://example.org/x",
            "memory:///",
            "s3:///x",
            "http://[",
            "file://host/x",
        ] {
            let error = Objects::open(address, &BTreeMap::new()).unwrap_err();
            assert!(
                error.to_string().starts_with("cannot"),
                "{address}: {error}"
            );
        }
    }
}
