//! What is pushed, and what GitHub tells of it.

use super::plan::{Commit, Delivery, Happening, MAIN, Plan, PullRequest, REPOSITORY};
use super::random::Random;
use super::world::{EPOCH, Moment};
use serde_json::{Value, json};
use std::time::Duration;

impl Plan {
    /// Commits of the repository on GitHub, and their deliveries.
    pub(super) fn make_history(&mut self) {
        let random = &mut Random::of(self.seed, "history", 0);
        self.add_commit(random, None);
        let mut deliveries = Vec::new();
        for _ in 0..random.pick(&[1, 1, 1, 2, 2, 3]) {
            match random.between(0, 3) {
                0 => self.push(random, &mut deliveries),
                _ => self.pull_request(random, &mut deliveries),
            }
        }
        self.deliver(random, deliveries);
        let random = &mut Random::of(self.seed, "local history", 0);
        if random.happens(20) {
            self.commit_locally(random);
        }
    }

    fn add_commit(&mut self, random: &mut Random, parent: Option<&str>) -> String {
        let number = self.commits.len() as i64;
        let sha = format!("{:08x}", number + 0xc0).repeat(5);
        let commit = Commit {
            parent: parent.map(str::to_owned),
            file: repository_file(&mut Random::of(self.seed, "file", number)),
            conflicts: parent.is_some() && random.happens(4),
        };
        self.commits.insert(sha.clone(), commit);
        sha
    }

    fn push(&mut self, random: &mut Random, deliveries: &mut Vec<(Moment, Delivery)>) {
        let parent = self.pushed.last().cloned().unwrap_or_else(|| self.root());
        let sha = self.add_commit(random, Some(&parent));
        let at = Moment::from_millis(random.between(0, 3000));
        let body = json!({
            "ref": format!("refs/heads/{MAIN}"), "before": parent, "after": sha,
            "repository": {"id": 1, "full_name": REPOSITORY},
            "head_commit": {"message": "A change", "author": {"name": "Ada"}},
        });
        self.pushed.push(sha);
        deliveries.push((at, delivery("push", deliveries.len(), body)));
    }

    fn commit_locally(&mut self, random: &mut Random) {
        let mut at = Moment::ZERO;
        let mut parent = self.root();
        for _ in 0..random.pick(&[1, 1, 1, 2, 2, 3]) {
            at += Duration::from_millis(random.between(10, 3000));
            parent = self.add_commit(random, Some(&parent));
            self.local.push((at, parent.clone()));
        }
    }

    fn pull_request(&mut self, random: &mut Random, deliveries: &mut Vec<(Moment, Delivery)>) {
        let number = self.pull_requests.len() as i64 + 1;
        let root = self.root();
        let mut head = self.add_commit(random, Some(&root));
        let mut at = Moment::from_millis(random.between(0, 2000));
        let mut tell = |action: &str,
                        head: &str,
                        before: Option<&str>,
                        merged: Option<&str>,
                        at: Moment| {
            let body = json!({
                "action": action, "before": before,
                "pull_request": {
                    "number": number, "title": "A change", "user": {"login": "ada"},
                    "state": if action == "closed" { "closed" } else { "open" },
                    "merged": merged.is_some(), "merge_commit_sha": merged,
                    // Its clock has whole seconds: two pushes may share one.
                    "updated_at": (EPOCH + Duration::from_secs(at.as_secs())).to_string(),
                    "head": {"ref": "topic", "sha": head, "repo": {"id": 1, "full_name": REPOSITORY}},
                    "base": {"ref": MAIN, "sha": root, "repo": {"id": 1, "full_name": REPOSITORY}},
                },
                "repository": {"id": 1, "full_name": REPOSITORY},
            });
            deliveries.push((at, delivery("pull_request", deliveries.len(), body)));
        };
        tell("opened", &head, None, None, at);
        for _ in 0..random.pick(&[0, 0, 0, 1, 1, 2]) {
            let next = self.add_commit(random, Some(&head));
            at += Duration::from_millis(random.between(300, 4000));
            tell("synchronize", &next, Some(&head), None, at);
            head = next;
        }
        let mut is_open = true;
        if random.happens(25) {
            at += Duration::from_millis(random.between(1000, 4000));
            if random.happens(50) {
                let merge = self.add_commit(random, Some(&head));
                tell("closed", &head, None, Some(&merge), at);
                self.pushed.push(merge);
                is_open = false;
            } else {
                tell("closed", &head, None, None, at);
                is_open = random.happens(40);
                if is_open {
                    at += Duration::from_millis(random.between(1100, 3000));
                    tell("reopened", &head, None, None, at);
                }
            }
        }
        let request = PullRequest { head, is_open };
        self.pull_requests.insert(number, request);
    }

    /// Deliveries come late, twice, and out of order.
    fn deliver(&mut self, random: &mut Random, deliveries: Vec<(Moment, Delivery)>) {
        let late = random.pick(&[50, 50, 1000, 3000]);
        for (at, delivery) in deliveries {
            let arrives = at + Duration::from_millis(random.between(5, late));
            if random.happens(20) {
                let again = arrives + Duration::from_millis(random.between(0, 4000));
                self.happenings
                    .push((again, Happening::Delivery(delivery.clone())));
            }
            self.happenings
                .push((arrives, Happening::Delivery(delivery)));
        }
    }
}

fn delivery(event: &'static str, number: usize, body: Value) -> Delivery {
    Delivery {
        guid: format!("guid-{number}"),
        event,
        body,
    }
}

fn repository_file(random: &mut Random) -> String {
    if random.happens(2) {
        return "[suite.test]\nplatform = ['alpha']".to_owned();
    }
    let mut text = String::new();
    let suites: &[&str] = match random.happens(15) {
        true => &["lint", "test"],
        false => &["test"],
    };
    for suite in suites {
        let platforms = random.pick(&["'alpha'", "'beta'", "'alpha', 'beta'"]);
        text.push_str(&format!("[suite.{suite}]\nplatforms = [{platforms}]\n"));
        if random.happens(30) {
            text.push_str("reports = ['junit.xml']\n");
        }
        for _ in 0..random.between(1, 2) {
            let run = script(random);
            text.push_str(&format!("[[suite.{suite}.step]]\nrun = '{run}'\n"));
        }
    }
    if random.happens(60) {
        text.push_str("[artifacts]\nsuite = 'test'\nfiles = ['dist/*']\n");
        let run = script(random);
        text.push_str(&format!("[[artifacts.step]]\nrun = '{run}'\n"));
    }
    text
}

fn script(random: &mut Random) -> String {
    let bytes = random.between(0, 1500);
    match random.between(0, 99) {
        0..=3 => format!("hang {bytes}"),
        4 => format!("stubborn {bytes}"),
        5..=16 => format!(
            "print {bytes} {} {}",
            random.between(10, 2500),
            random.pick(&[1, 2, 255])
        ),
        _ => format!("print {bytes} {} 0", random.between(10, 2500)),
    }
}
