//! Ends: of a step with all that it started, and of the machine.

use super::Checks;
use crate::certify::certificate::Verdict;
use crate::certify::guest::{Question, Trouble, shown};
use crate::certify::place::VM;
use crate::certify::seconds;
use crate::model::OsFamily;
use std::time::Duration;
use tokio::time::Instant;

/// Three processes that end only when they are ended: a child, one that does not hear TERM, one whose parent is gone.
const TREE: &str = r#"
rm -f "$LIST"; : >"$LIST"
run='echo $$ >>"$LIST"; while :; do sleep 1; done'
sh -c "$run" &
sh -c "trap '' TERM; $run" &
sh -c "(sh -c '$run' &); exit 0"
while [ "$(wc -l <"$LIST")" -lt 3 ]; do sleep 1; done
echo ready
wait
"#;
/// Prints those that are left. One that has ended may wait a moment for its parent.
const LEFT: &str = r#"
for try in 1 2 3 4 5; do
    left=; while read -r id; do kill -0 "$id" 2>/dev/null && left="$left $id"; done <"$LIST"
    [ -n "$left" ] || break
    sleep 1
done
echo "left:$left"
"#;
const GRACE: Duration = Duration::from_secs(2);
const STOP_SECS: u64 = 20;
const POWEROFF_SECS: u64 = 40;

impl Checks<'_> {
    pub(super) async fn process_tree(&mut self) -> Result<Verdict, Trouble> {
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let list = self.guest.path("processes");
        let limit = self.guest.machine.scaled(STOP_SECS);
        let began = Instant::now();
        let tree = Question::sh(TREE).with("LIST", &list);
        self.guest.ask_and_stop(tree, GRACE, limit).await?;
        let took = began.elapsed();
        let left = Question::sh(LEFT).with("LIST", &list);
        let said = self.guest.ask(left).await?.good()?;
        Ok(match said.trim().strip_prefix("left:") {
            Some("") => Verdict::Passed(format!(
                "a step and its 3 processes were gone after {}",
                seconds(took)
            )),
            Some(left) => Verdict::Failed(format!(
                "a step was ended, and of its 3 processes these still run:{left}"
            )),
            None => Verdict::Failed(format!(
                "its processes cannot be seen: {}",
                shown(said.as_bytes())
            )),
        })
    }

    /// Root's own way of switching the machine off.
    pub(super) async fn poweroff(&mut self) -> Result<Verdict, Trouble> {
        let off = match self.guest.platform().os {
            OsFamily::Linux => "poweroff",
            OsFamily::Freebsd | OsFamily::Netbsd | OsFamily::Openbsd | OsFamily::Dragonfly => {
                "shutdown -p now"
            }
            OsFamily::Macos => "shutdown -h now",
            OsFamily::Windows => "shutdown /s /t 0",
        };
        let question = match self.guest.platform().os.is_unix() {
            true => Question::sh(format!(
                "sudo -n {off} || doas {off} || sudo {off} || su root -c '{off}'"
            )),
            false => Question::to(&["cmd", "/d", "/s", "/c"], off),
        };
        let limit = self.guest.machine.scaled(POWEROFF_SECS);
        let began = Instant::now();
        let (said, is_off) = {
            let machines = self.guest.machine.place.machines.clone();
            let gone = async move { machines.wait_gone(VM).await };
            tokio::pin!(gone);
            // The connection may be lost before the step is seen to end, or hang until the machine is gone.
            let said = tokio::select! {
                _ = &mut gone => None,
                said = self.guest.ask(question) => Some(said),
            };
            let is_off = match &said {
                None => true,
                Some(_) => tokio::time::timeout(limit, gone).await.is_ok(),
            };
            (said, is_off)
        };
        let took = seconds(began.elapsed());
        Ok(match (is_off, said) {
            (true, _) => Verdict::Passed(format!("off after {took}")),
            (false, Some(Ok(said))) => Verdict::Failed(format!(
                "it still runs {took} after `{off}`: {}",
                shown(&said.bytes)
            )),
            (false, _) => Verdict::Failed(format!("it still runs {took} after `{off}`")),
        })
    }
}
