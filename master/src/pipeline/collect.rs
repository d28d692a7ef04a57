//! What is taken out of a guest after its steps: reports always, artefacts when the build publishes.

use super::drive::Driver;
use super::patience::insist;
use super::work::{Interruption, Work};
use crate::model::{Ending, Reason, TestCounts};
use crate::result::artifacts::{ArtifactError, Caps, Fault};
use crate::result::junit;
use crate::session::SessionError;
use tokio_util::io::StreamReader;

/// Report files of one job, and their bytes together.
const MAX_REPORTS: u64 = 200;
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Whether the job's artefacts are kept.
pub(super) fn publishes(driver: &Driver) -> bool {
    driver.build.new.publish && !driver.job.plan.artifacts.is_empty()
}

/// Takes out what is wanted. After a lost connection it is done again from its beginning, with the same lines in the
/// log at the same place.
pub(super) async fn collect(work: &mut Work<'_>, has_passed: bool) -> Result<(), Interruption> {
    let mut at = work.notes_from;
    reports(work, &mut at).await?;
    if has_passed && publishes(work.driver()) {
        artifacts(work, &mut at).await?;
    }
    Ok(())
}

/// Counts the tests in the reports; a report that cannot be read costs a line in the log, not the job.
async fn reports(work: &mut Work<'_>, at: &mut u64) -> Result<(), Interruption> {
    let globs = work.driver().job.plan.reports.clone();
    if globs.is_empty() {
        return Ok(());
    }
    let problems = match count_tests(work, &globs).await {
        Ok((counts, problems)) => {
            let driver = work.driver();
            if let Some(counts) = counts {
                insist(|| driver.ledger.store.record_tests(driver.job.id, &counts)).await;
            }
            problems
        }
        Err(error) => match Interruption::of(&error, Reason::AgentLost) {
            Interruption::Ended(_) => vec![format!("reports were not collected: {error}")],
            lost @ Interruption::ConnectionLost(_) => return Err(lost),
        },
    };
    for problem in problems {
        *at = work.note(*at, &problem).await?;
    }
    Ok(())
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
        if file.file.size > junit::MOST_REPORT_BYTES as u64 {
            let error = junit::ReportError::TooLarge {
                bytes: file.file.size,
            };
            problems.push(format!("report {}: {error}", file.file.path));
            continue;
        }
        // Its size is known, and bounded: it is not to grow step by step to twice of that.
        let mut xml = Vec::with_capacity(usize::try_from(file.file.size).unwrap_or(0));
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
async fn artifacts(work: &mut Work<'_>, at: &mut u64) -> Result<(), Interruption> {
    let globs = work.driver().job.plan.artifacts.clone();
    let (files, left_out) = store_artifacts(work, &globs).await?;
    for line in left_out {
        *at = work.note(*at, &line).await?;
    }
    let said = match files {
        0 => format!("no file matched {}", globs.join(", ")),
        1 => "1 artefact stored".to_owned(),
        files => format!("{files} artefacts stored"),
    };
    *at = work.note(*at, &said).await?;
    Ok(())
}

/// How many files were stored, and why others were not.
async fn store_artifacts(
    work: &mut Work<'_>,
    globs: &[String],
) -> Result<(usize, Vec<String>), Interruption> {
    let lost = |error: &SessionError| Interruption::of(error, Reason::AgentLost);
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
    let artifacts = &driver.machinery.artifacts;
    let mut reception = artifacts
        .receive(&driver.job, &tested, caps)
        .await
        .map_err(|e| refused(&e))?;
    let mut left_out = Vec::new();
    let mut collection = work
        .agent
        .collect(&dir, globs, max_files, max_bytes)
        .await
        .map_err(|e| lost(&e))?;
    while let Some(file) = collection.next_file().await.map_err(|e| lost(&e))? {
        let meta = file.file.clone();
        let chunks = futures::stream::try_unfold(file, |mut file| async move {
            let chunk = file.next_chunk().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, file)))
        });
        let reader = StreamReader::new(Box::pin(chunks));
        let stored = reception
            .store(&meta.path, meta.size, meta.executable, reader)
            .await;
        if let Err(error) = stored {
            match error.fault() {
                Fault::Job => left_out.push(format!("artefact {}: {error}", meta.path)),
                Fault::Session | Fault::Storage => {
                    return Err(match session_error_of(&error) {
                        Some(session) => lost(session),
                        None => refused(&error).into(),
                    });
                }
            }
        }
    }
    for file in collection.skipped() {
        left_out.push(format!("artefact {} was left out: {}", file.path, file.why));
    }
    drop(collection);
    let manifest = reception.finish().await.map_err(|e| refused(&e))?;
    Ok((manifest.artifacts.len(), left_out))
}

/// The trouble with the connection that an artefact was not stored for.
fn session_error_of(error: &ArtifactError) -> Option<&SessionError> {
    match error {
        ArtifactError::Receive { source, .. } => source.get_ref()?.downcast_ref(),
        ArtifactError::Name(_)
        | ArtifactError::TooMany { .. }
        | ArtifactError::TooLarge { .. }
        | ArtifactError::Size { .. }
        | ArtifactError::Keep { .. }
        | ArtifactError::Object { .. }
        | ArtifactError::Store { .. }
        | ArtifactError::Manifest { .. }
        | ArtifactError::Overtaken { .. } => None,
    }
}
