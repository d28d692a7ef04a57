//! `/metrics` in Prometheus' text form, read from the rows at each scrape.

use super::App;
use super::error::ApiError;
use crate::config::Standing;
use crate::pipeline::pause::Pause;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(String, String)>;

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let store = &app.ledger.store;
    let mut registry = Registry::with_prefix("vivarium");
    let mut add = |name: &str, help: &str, label: &str, counts: Vec<(String, i64)>| {
        let family = Family::<Labels, Gauge>::default();
        for (value, count) in counts {
            family
                .get_or_create(&vec![(label.to_owned(), value)])
                .set(count);
        }
        registry.register(name, help, family);
    };
    add("jobs", "Jobs by state", "state", store.count_jobs().await?);
    add(
        "jobs_finished",
        "Finished jobs by the reason of their end",
        "reason",
        store.count_endings().await?,
    );
    let deliveries = store.delivery_counts().await?;
    add(
        "deliveries",
        "Webhook deliveries by state",
        "state",
        vec![
            ("stored".into(), deliveries.stored),
            ("done".into(), deliveries.done),
            ("failed".into(), deliveries.failed),
        ],
    );
    let mut attempts: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
    for attempt in store.live_attempts().await? {
        *attempts
            .entry(attempt.phase.as_str().to_owned())
            .or_default() += 1;
    }
    add(
        "attempts",
        "Attempts that have not ended, by phase",
        "phase",
        attempts.into_iter().collect(),
    );
    let ready = app.platforms.ready().len() as i64;
    let refused = app.platforms.refused().len() as i64;
    let listed = app.platforms.list();
    let out = listed
        .iter()
        .filter(|listed| matches!(listed.standing, Standing::OutOfService(_)))
        .count() as i64;
    let held = listed.len() as i64 - ready - refused - out;
    add(
        "platforms",
        "Platforms by whether they take work",
        "state",
        vec![
            ("ready".into(), ready),
            ("held".into(), held),
            ("out_of_service".into(), out),
            ("refused".into(), refused),
        ],
    );
    add(
        "platform_boots_failed",
        "Boots of the platform that failed in a row",
        "platform",
        store
            .platform_boots()
            .await?
            .into_iter()
            .map(|(name, service)| (name, i64::from(service.failures)))
            .collect(),
    );
    let certificates = app.certificates.all();
    add(
        "image_certified",
        "Whether the image has a certificate of its own without a failed check",
        "platform",
        certificates
            .iter()
            .map(|(name, of)| (name.clone(), i64::from(of.standing.is_certified())))
            .collect(),
    );
    add(
        "image_tested_seconds",
        "Time since the test that the image's certificate tells of",
        "platform",
        certificates
            .iter()
            .filter_map(|(name, of)| {
                let age = Timestamp::now().duration_since(of.standing.tested_at()?);
                Some((name.clone(), age.as_secs()))
            })
            .collect(),
    );
    add(
        "image_test_failed",
        "Whether the image fails its test, or could not be tested last night",
        "platform",
        certificates
            .into_iter()
            .map(|(name, of)| {
                let is_failed = of.standing.is_failed() || of.trouble.is_some();
                (name, i64::from(is_failed))
            })
            .collect(),
    );
    let pauses = app.pauses.now();
    add(
        "placing_paused",
        "Whether jobs wait for this reason, whatever room there is for machines",
        "reason",
        Pause::NAMES
            .into_iter()
            .map(|name| {
                let is_on = pauses.iter().any(|pause| pause.name() == name);
                (name.to_owned(), i64::from(is_on))
            })
            .collect(),
    );
    let file_systems = app.pauses.disks.look().await.map_err(ApiError::internal)?;
    add(
        "disk_free_bytes",
        "Room on the file systems with the master's data",
        "mount",
        file_systems
            .into_iter()
            .map(|disk| {
                let bytes = i64::try_from(disk.free_mib << 20).unwrap_or(i64::MAX);
                (disk.mount.display().to_string(), bytes)
            })
            .collect(),
    );
    let results = app.pauses.backlog.now();
    let looks = store.looks().await?;
    let now = Timestamp::now();
    add(
        "github_looked_at_seconds",
        "Time since the last complete comparison with GitHub",
        "repository",
        looks
            .iter()
            .filter_map(|look| {
                let age = now.duration_since(look.complete_at?).as_secs();
                Some((look.repository.clone(), age))
            })
            .collect(),
    );
    add(
        "github_made_good",
        "Builds, cancellations and statuses that comparing with GitHub has made good",
        "repository",
        looks
            .into_iter()
            .map(|look| (look.repository, look.made_good))
            .collect(),
    );
    let backlog = store.status_backlog().await?;
    let fetched = store.fetched_deliveries().await?;
    let mut single = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    single(
        "statuses_unsent",
        "Commit statuses that GitHub was not told yet",
        backlog.unsent,
    );
    single(
        "statuses_oldest_unsent_seconds",
        "Age of the oldest of them",
        backlog.oldest.map_or(0, |oldest| {
            Timestamp::now().duration_since(oldest).as_secs()
        }),
    );
    single(
        "results_waiting_jobs",
        "Ended jobs whose log or artefacts are not in the object store yet",
        i64::try_from(results.jobs).unwrap_or(i64::MAX),
    );
    single(
        "results_waiting_bytes",
        "Bytes of these logs and artefacts",
        i64::try_from(results.bytes).unwrap_or(i64::MAX),
    );
    single(
        "results_oldest_waiting_seconds",
        "Time since the first of these jobs ended",
        results.oldest.map_or(0, |oldest| {
            Timestamp::now().duration_since(oldest).as_secs()
        }),
    );
    single(
        "deliveries_fetched",
        "Events that GitHub could not deliver and that were fetched from its log",
        fetched,
    );
    single(
        "statuses_refused",
        "Commit statuses that GitHub refused for good",
        backlog.refused,
    );
    let mut text = String::new();
    encode(&mut text, &registry).map_err(ApiError::internal)?;
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, form)], text).into_response())
}
