//! Open pull requests: each head has its build; those that are not open any more have none under way.

use super::rules::{Missing, missing, was_tested};
use super::{Broken, Look};
use crate::config::OnNewCommit;
use crate::event::form::PullRequestBody;
use crate::event::subjects::{closed, wanted};
use crate::model::{Intent, Learnt, Reason};
use crate::pipeline::intake::wanted::pull_request_key;
use std::collections::{BTreeSet, HashSet};

impl Look<'_> {
    /// Gives the heads of the open ones.
    pub(super) async fn look_at_pulls(&mut self) -> Result<Vec<String>, Broken> {
        self.spend()?;
        let listed = self
            .github
            .open_pull_requests(&self.repository.name, &mut self.known.pulls)
            .await?;
        let under_way = self
            .intake
            .ledger
            .store
            .pull_requests_under_way(&self.repository.name, self.when.began)
            .await?;
        let mut heads = Vec::new();
        let mut open = HashSet::new();
        for request in &listed.items {
            open.insert(request.number);
            heads.extend(self.look_at_pull(request, &under_way).await?);
        }
        let absent: BTreeSet<i64> = under_way
            .into_iter()
            .map(|(number, _)| number)
            .filter(|number| !open.contains(number))
            .collect();
        for number in absent {
            self.look_at_absent_pull(number).await?;
        }
        Ok(heads)
    }

    /// Gives the head. `under_way` are pull requests and heads with a build that has not ended.
    async fn look_at_pull(
        &mut self,
        request: &PullRequestBody,
        under_way: &[(i64, String)],
    ) -> Result<Option<String>, Broken> {
        let learnt = Learnt::ByLooking {
            at: self.when.began,
        };
        let wanted = match wanted(request, learnt) {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::debug!(repository = self.repository.name, number = request.number, %error, "a pull request is passed over");
                return Ok(None);
            }
        };
        let (number, head) = (wanted.number, wanted.head_sha.clone());
        let key = pull_request_key(&wanted);
        let store = &self.intake.ledger.store;
        let known = store.build_of_key(&self.repository.name, &key).await?;
        let is_missing = match missing(known.as_ref(), wanted.updated_at, self.when) {
            Missing::Nothing => {
                known.is_some()
                    && self.repository.on_new_commit == OnNewCommit::Cancel
                    && under_way
                        .iter()
                        .any(|(other, sha)| *other == number && *sha != head)
            }
            Missing::TakeUp => true,
            Missing::Build => !self.was_tested_before(&head, &key).await?,
        };
        if is_missing {
            let why = format!("pull request #{number} with a head that is not what is built");
            self.carry_out(vec![Intent::BuildPullRequest(wanted)], &why)
                .await?;
        }
        Ok(Some(head))
    }

    /// A build that was forgotten after its time left a status at GitHub.
    pub(super) async fn was_tested_before(
        &mut self,
        head: &str,
        key: &str,
    ) -> Result<bool, Broken> {
        let ledger = &self.intake.ledger;
        self.keys.insert(key.to_owned());
        if self.known.settled.contains(key) {
            return Ok(true);
        }
        if ledger.store.knows_head(&self.repository.name, head).await? {
            return Ok(false);
        }
        self.spend()?;
        let shown = self
            .github
            .shown_statuses(&self.repository.name, head)
            .await?;
        let was_tested = was_tested(&shown, |url| ledger.is_own_page(url));
        if was_tested {
            self.known.settled.insert(key.to_owned());
        }
        Ok(was_tested)
    }

    /// One with builds under way that is not among the open ones.
    async fn look_at_absent_pull(&mut self, number: i64) -> Result<(), Broken> {
        self.spend()?;
        let found: Option<PullRequestBody> = self
            .github
            .pull_request(&self.repository.name, number)
            .await?;
        let intents = match &found {
            Some(request) if request.state.as_deref() == Some("closed") => {
                closed(request, self.repository).map_err(anyhow::Error::from)?
            }
            // Opened again since, or beyond what is read of the list.
            Some(_) => return Ok(()),
            None => vec![Intent::CancelPullRequest {
                number,
                reason: Reason::Closed,
                closed_at: None,
            }],
        };
        self.carry_out(intents, &format!("that pull request #{number} is closed"))
            .await
    }
}
