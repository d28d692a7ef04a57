//! What is taken out of a guest after its steps: reports always, artefacts when the build publishes.

use super::transcript;
use super::work::Work;
use crate::model::{Ending, Reason, TestCounts};
use crate::result::artifacts::{ArtifactUpload, Caps, Fault};
use crate::result::junit;
use crate::session::SessionError;
use std::time::Duration;
use tokio_util::io::StreamReader;

/// Report files of one job, and their bytes together.
const MAX_REPORTS: u64 = 200;
const MAX_REPORT_BYTES: u64 = 64 << 20;
/// Without any progress, collecting is given up after this.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(1800);

/// Counts the tests in the reports; a report that cannot be read costs a line in the log, not the job.
pub(super) async fn reports(work: &mut Work<'_>) {
    let globs = work.driver().job.plan.reports.clone();
    if globs.is_empty() {
        return;
    }
    let counted = tokio::time::timeout(COLLECT_TIMEOUT, count_tests(work, &globs)).await;
    let problems = match counted {
        Ok(Ok((counts, problems))) => {
            let driver = work.driver();
            if let Some(counts) = counts
                && let Err(error) = driver
                    .ledger
                    .store
                    .record_tests(driver.job.id, &counts)
                    .await
            {
                tracing::warn!(%error, "test counts cannot be recorded");
            }
            problems
        }
        Ok(Err(error)) => vec![format!("reports were not collected: {error}")],
        Err(_) => vec!["reports were not collected in time".to_owned()],
    };
    for problem in problems {
        if transcript::note(&mut work.log, &problem).await.is_err() {
            return;
        }
    }
}

async fn count_tests(
    work: &mut Work<'_>,
    globs: &[String],
) -> Result<(Option<TestCounts>, Vec<String>), SessionError> {
    let dir = work.work_dir();
    let mut collection = work
        .agent
        .collect(&dir, globs, MAX_REPORTS, MAX_REPORT_BYTES)
        .await?;
    let mut parsed = Vec::new();
    let mut problems = Vec::new();
    while let Some(mut file) = collection.next_file().await? {
        let mut xml = Vec::new();
        while let Some(chunk) = file.next_chunk().await? {
            xml.extend_from_slice(&chunk);
        }
        match junit::parse(&xml) {
            Ok(counts) => parsed.push(counts),
            Err(error) => problems.push(format!("report {}: {error}", file.file.path)),
        }
    }
    for skipped in collection.skipped() {
        problems.push(format!(
            "report {} was left out: {}",
            skipped.path, skipped.why
        ));
    }
    if parsed.is_empty() && problems.is_empty() {
        problems.push(format!("no report matched {}", globs.join(", ")));
    }
    let mask = &work.driver().mask;
    let counts = (!parsed.is_empty()).then(|| {
        let mut counts = junit::merge(parsed);
        for name in &mut counts.failing {
            *name = mask.text(name);
        }
        counts
    });
    Ok((counts, problems))
}

/// Stores the files that the build publishes.
pub(super) async fn artifacts(work: &mut Work<'_>) -> Result<(), Ending> {
    let driver = work.driver();
    let globs = driver.job.plan.artifacts.clone();
    if !driver.build.new.publish || globs.is_empty() {
        return Ok(());
    }
    let stored = tokio::time::timeout(COLLECT_TIMEOUT, store_artifacts(work, &globs)).await;
    let files = match stored {
        Ok(stored) => stored?,
        Err(_) => {
            return Err(Ending::new(
                Reason::StorageError,
                format!(
                    "The artefacts were not stored in {} s",
                    COLLECT_TIMEOUT.as_secs()
                ),
            ));
        }
    };
    let said = match files {
        0 => format!("no file matched {}", globs.join(", ")),
        1 => "1 artefact stored".to_owned(),
        files => format!("{files} artefacts stored"),
    };
    transcript::note(&mut work.log, &said).await
}

async fn store_artifacts(work: &mut Work<'_>, globs: &[String]) -> Result<usize, Ending> {
    let lost = |error: SessionError| {
        Ending::new(
            Reason::AgentLost,
            format!("The artefacts were not collected: {error}"),
        )
    };
    let refused = |error: &dyn std::fmt::Display| {
        Ending::new(
            Reason::StorageError,
            format!("The artefacts were not stored: {error}"),
        )
    };
    let dir = work.work_dir();
    let driver = work.driver();
    let limits = &driver.machinery.config.limits;
    let (max_files, max_bytes) = (limits.artifact_files, limits.artifacts_mib << 20);
    let tested = driver.build.tested_sha.clone().unwrap_or_default();
    let caps = Caps {
        files: usize::try_from(max_files).unwrap_or(usize::MAX),
        bytes: max_bytes,
    };
    let mut upload = ArtifactUpload::begin(
        driver.machinery.objects.clone(),
        driver.ledger.store.clone(),
        &driver.job,
        &tested,
        caps,
    )
    .await
    .map_err(|e| refused(&e))?;
    let mut left_out = Vec::new();
    let mut collection = work
        .agent
        .collect(&dir, globs, max_files, max_bytes)
        .await
        .map_err(lost)?;
    while let Some(file) = collection.next_file().await.map_err(lost)? {
        let meta = file.file.clone();
        let chunks = futures::stream::try_unfold(file, |mut file| async move {
            let chunk = file.next_chunk().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, file)))
        });
        let reader = StreamReader::new(Box::pin(chunks));
        let stored = upload
            .store(&meta.path, meta.size, meta.executable, reader)
            .await;
        if let Err(error) = stored {
            match error.fault() {
                Fault::Job => left_out.push(format!("artefact {}: {error}", meta.path)),
                Fault::Session | Fault::Storage => return Err(refused(&error)),
            }
        }
    }
    for file in collection.skipped() {
        left_out.push(format!("artefact {} was left out: {}", file.path, file.why));
    }
    drop(collection);
    for line in left_out {
        transcript::note(&mut work.log, &line).await?;
    }
    let manifest = upload.finish().await.map_err(|e| refused(&e))?;
    Ok(manifest.artifacts.len())
}
