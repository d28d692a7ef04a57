//! A job's log: each line of ours once, and of the output every byte once, in order.

use super::Check;
use crate::model::{Attempt, Job, Reason};
use crate::simulation::program::{Program, text};
use crate::store::attempts::StepRecord;
use vivarium_protocol::Exit;

impl Check<'_> {
    /// The log has each line of ours once, and of the output every byte once, in order.
    pub(super) async fn log(&self, job: &Job, attempts: &[Attempt], reason: Reason) {
        let mut bytes = Vec::new();
        let mut from = 0;
        loop {
            let chunk = match self.logs.chunk(job.id, from, 1 << 20).await {
                Ok(chunk) => chunk,
                Err(error) => return self.world.violated(error),
            };
            bytes.extend_from_slice(&chunk.bytes);
            from = chunk.next;
            if chunk.bytes.is_empty() || chunk.complete {
                break;
            }
        }
        let log = String::from_utf8(bytes).expect("plain text");
        let read = self.world.state().read.get(&job.id).cloned();
        if let Some(read) = read.filter(|_| !self.plan().reruns()) {
            self.expect(log.as_bytes().starts_with(&read), || {
                format!("who followed the log of {} has read another", job.id)
            });
        }
        let mut pieces = log.split("==> ");
        let wrong = |what: &str| {
            let marks: Vec<&str> = log.lines().filter(|line| line.contains("==> ")).collect();
            let marks = marks.join("\n        ");
            self.world.violated(format_args!(
                "the log of {}: {what}:\n        {marks}",
                job.id
            ));
        };
        if pieces.next() != Some("") {
            return wrong("it begins in the middle");
        }
        let mut seen: Vec<(String, Vec<&str>)> = Vec::new();
        for piece in pieces {
            let Some((mark, rest)) = piece.split_once('\n') else {
                return wrong("a line of ours has no end");
            };
            if mark.starts_with("vm-") {
                let vm = mark.split(' ').next().unwrap_or_default().to_owned();
                if seen.iter().any(|(known, _)| *known == vm) {
                    return wrong("an attempt begins twice");
                }
                seen.push((vm, Vec::new()));
                if !rest.is_empty() {
                    return wrong("something follows the first line");
                }
                continue;
            }
            let Some((vm, marks)) = seen.last_mut() else {
                // An attempt that could not even begin its log has its end there.
                continue;
            };
            if marks.contains(&mark) {
                return wrong("a line of ours is there twice");
            }
            marks.push(mark);
            if mark == "the last lines of the console:" {
                continue;
            }
            let Some(step) = mark.strip_prefix("step ") else {
                if !rest.is_empty() {
                    return wrong("there is output outside of a step");
                }
                continue;
            };
            let attempt = attempts
                .iter()
                .find(|attempt| attempt.id.to_string() == *vm);
            let Some(attempt) = attempt else {
                return wrong("there is an attempt that is none");
            };
            let records = self.store.steps_of(attempt.id).await.expect("read");
            let number = step.split(' ').next().and_then(|n| n.parse::<usize>().ok());
            let record = number.and_then(|number| records.get(number - 1));
            let Some(record) = record else {
                return wrong("a step has no record");
            };
            if !is_exact(record, rest) {
                return wrong(&format!("the output of {vm}, `{}` is wrong", record.name));
            }
        }
        let is_whole = match reason {
            Reason::Passed => seen.last().is_some_and(|(_, marks)| {
                let steps = marks.iter().filter(|mark| mark.starts_with("step "));
                steps.count() == job.plan.steps.len() && marks.contains(&"success: Passed")
            }),
            _ => true,
        };
        if !is_whole {
            wrong("a step is missing");
        }
    }
}

/// Whether this is the step's output from its first byte on, and all of it where the step ran to its end.
fn is_exact(record: &StepRecord, output: &str) -> bool {
    let Some(program) = Program::parse(&record.name) else {
        return false;
    };
    let length = output.len() as u64;
    let is_prefix = length <= program.bytes && text(0, length) == output.as_bytes();
    let ran_to_its_end = matches!(record.exit, Some(Exit::Code { .. }));
    is_prefix && (!ran_to_its_end || length == program.bytes)
}
