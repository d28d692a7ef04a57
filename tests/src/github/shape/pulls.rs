//! Pull requests.

use super::{
    FULL_NAME, HEAD_SHA, PULL_REQUEST, Shapes, node_id, optional_time, rewrite, set, time,
};
use crate::github::state::{Mergeability, PullRequest, PullState, Repository, State};
use serde_json::{Map, Value, json};

impl Shapes {
    pub(in crate::github) fn pull_request(
        &self,
        state: &State,
        repository: &Repository,
        pull: &PullRequest,
    ) -> Value {
        let mut value = PULL_REQUEST["pull_request"].clone();
        let full_name = repository.full_name();
        let numbered = |kind: &str, number: i64| format!("{FULL_NAME}/{kind}/{number}");
        let rename: Vec<(String, String)> = ["pulls", "pull", "issues"]
            .into_iter()
            .map(|kind| (numbered(kind, 2), numbered(kind, pull.number)))
            .collect();
        let mut pairs: Vec<(&str, &str)> = rename
            .iter()
            .map(|(from, to)| (from.as_str(), to.as_str()))
            .collect();
        pairs.extend([(HEAD_SHA, pull.head_sha.as_str()), (FULL_NAME, &full_name)]);
        rewrite(&mut value, &self.hosts(&pairs));

        let head_owner = pull
            .head_repository
            .as_deref()
            .and_then(|name| name.split('/').next())
            .unwrap_or(&pull.author);
        let head_repository = pull
            .head_repository
            .as_deref()
            .and_then(|name| state.repository(name))
            .map_or(Value::Null, |head| self.repository_in_pull(state, head));
        let author = self.account(&state.known_account(&pull.author));
        let (mergeable, mergeable_state) = match &pull.mergeability {
            Mergeability::Unknown => (Value::Null, "unknown"),
            Mergeability::Clean { .. } => (true.into(), "clean"),
            Mergeability::Conflict => (false.into(), "dirty"),
        };
        let merge_commit = match (&pull.merge_commit_sha, &pull.mergeability) {
            (Some(sha), _) => Value::from(sha.clone()),
            (None, Mergeability::Clean { test_merge }) => Value::from(test_merge.clone()),
            (None, Mergeability::Unknown | Mergeability::Conflict) => Value::Null,
        };
        set(
            &mut value,
            json!({
                "id": pull.id,
                "node_id": node_id("PullRequest", pull.id),
                "number": pull.number,
                "title": pull.title,
                "body": null,
                "user": author,
                "state": match pull.state { PullState::Open => "open", PullState::Closed => "closed" },
                "draft": pull.draft,
                "created_at": time(pull.created_at),
                "updated_at": time(pull.updated_at),
                "closed_at": optional_time(pull.closed_at),
                "merged_at": optional_time(pull.merged_at),
                "merged": pull.merged,
                "merged_by": pull.merged_by.as_ref().map_or(Value::Null, |login| self.account(&state.known_account(login))),
                "merge_commit_sha": merge_commit,
                "mergeable": mergeable,
                "rebaseable": mergeable,
                "mergeable_state": mergeable_state,
                "assignee": null,
                "assignees": [],
                "requested_reviewers": [],
                "requested_teams": [],
                "labels": [],
                "author_association": if pull.author == repository.owner { "OWNER" } else { "CONTRIBUTOR" },
                "head": {
                    "label": format!("{head_owner}:{}", pull.head_branch),
                    "ref": pull.head_branch,
                    "sha": pull.head_sha,
                    "user": self.account(&state.known_account(head_owner)),
                    "repo": head_repository,
                },
                "base": {
                    "label": format!("{}:{}", repository.owner, pull.base_branch),
                    "ref": pull.base_branch,
                    "sha": pull.base_sha,
                    "user": self.account(&state.known_account(&repository.owner)),
                    "repo": self.repository_in_pull(state, repository),
                },
            }),
        );
        value
    }

    /// Inside a pull request a repository also carries its merge settings.
    fn repository_in_pull(&self, state: &State, repository: &Repository) -> Value {
        let mut value = self.repository(state, repository);
        for field in [
            "allow_squash_merge",
            "allow_merge_commit",
            "allow_rebase_merge",
            "delete_branch_on_merge",
        ] {
            let known = &PULL_REQUEST["pull_request"]["head"]["repo"][field];
            if !known.is_null() {
                set(&mut value, json!({ field: known }));
            }
        }
        value
    }
}

/// Fields that a pull request has only when it is asked for alone.
pub(in crate::github) fn without_details(pull: &mut Value) {
    let fields: Option<&mut Map<String, Value>> = pull.as_object_mut();
    if let Some(fields) = fields {
        for field in [
            "merged",
            "mergeable",
            "rebaseable",
            "mergeable_state",
            "merged_by",
            "comments",
            "review_comments",
            "maintainer_can_modify",
            "commits",
            "additions",
            "deletions",
            "changed_files",
        ] {
            fields.remove(field);
        }
    }
}
