//! Commits.

use super::{Shapes, node_id};
use crate::git::CommitInfo;
use crate::github::state::Repository;
use serde_json::{Value, json};

impl Shapes {
    pub(in crate::github) fn commit(&self, repository: &Repository, commit: &CommitInfo) -> Value {
        let base = format!("{}/repos/{}", self.api, repository.full_name());
        let page = format!("{}/{}/commit", self.html, repository.full_name());
        let person = json!({ "name": commit.author_name, "email": commit.author_email, "date": commit.date });
        let file = |status: &'static str| move |path: &String| json!({ "filename": path, "status": status });
        let files: Vec<Value> = commit
            .added
            .iter()
            .map(file("added"))
            .chain(commit.removed.iter().map(file("removed")))
            .chain(commit.modified.iter().map(file("modified")))
            .collect();
        json!({
            "sha": commit.sha,
            "node_id": node_id("Commit", 0),
            "url": format!("{base}/commits/{}", commit.sha),
            "html_url": format!("{page}/{}", commit.sha),
            "comments_url": format!("{base}/commits/{}/comments", commit.sha),
            "commit": {
                "url": format!("{base}/git/commits/{}", commit.sha),
                "author": person,
                "committer": person,
                "message": commit.message,
                "tree": { "sha": commit.tree, "url": format!("{base}/git/trees/{}", commit.tree) },
                "comment_count": 0,
                "verification": { "verified": false, "reason": "unsigned", "signature": null, "payload": null, "verified_at": null },
            },
            "author": null,
            "committer": null,
            "parents": commit.parents.iter().map(|sha| json!({
                "sha": sha,
                "url": format!("{base}/commits/{sha}"),
                "html_url": format!("{page}/{sha}"),
            })).collect::<Vec<_>>(),
            "files": files,
        })
    }
}
