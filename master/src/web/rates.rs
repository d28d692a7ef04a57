//! How often one address may ask without a token or a login, and try one.

use super::asker::Asker;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many requests at once as are refilled in this many seconds: a page with its parts, or a building full of people.
const BURST_SECS: u32 = 10;
/// Tries of a token or login that one address has, and the time after which it has one more. Tokens are too long to be
/// guessed: this keeps the tries cheap for us.
const TRIES: NonZeroU32 = NonZeroU32::new(30).unwrap();
const TRY_REFILL: Duration = Duration::from_secs(2);
/// Addresses that are remembered; an address is forgotten once its budget is full again.
const MOST_ADDRESSES: usize = 50_000;
/// Between two rounds of forgetting, so that a flood of addresses does not make a round of each request.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// The budgets of all addresses; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Rates(Arc<Budgets>);

#[derive(Debug)]
struct Budgets {
    requests: Budget,
    tries: Budget,
}

#[derive(Debug)]
struct Budget {
    limiter: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
    forgot: Mutex<Instant>,
}

/// It was too often: ask again after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooOften(pub(super) Duration);

impl Rates {
    pub(super) fn new(requests_per_second: u32) -> Rates {
        let each_second = NonZeroU32::new(requests_per_second).unwrap_or(NonZeroU32::MIN);
        let burst = each_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECS - 1));
        let tries = Quota::with_period(TRY_REFILL).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        Rates(Arc::new(Budgets {
            requests: Budget::new(Quota::per_second(each_second).allow_burst(burst)),
            tries: Budget::new(tries.allow_burst(TRIES)),
        }))
    }

    /// A request without a token or a login.
    pub(super) fn request(&self, asker: Asker) -> Result<(), TooOften> {
        self.0.requests.take(asker)
    }

    /// A token or login that is tried or was wrong.
    pub(super) fn try_secret(&self, asker: Asker) -> Result<(), TooOften> {
        self.0.tries.take(asker)
    }
}

impl Budget {
    fn new(quota: Quota) -> Budget {
        Budget {
            limiter: RateLimiter::hashmap(quota),
            forgot: Mutex::new(Instant::now()),
        }
    }

    fn take(&self, asker: Asker) -> Result<(), TooOften> {
        let Asker::One(address) = asker else {
            return Ok(());
        };
        if self.limiter.len() >= MOST_ADDRESSES && !self.forget() {
            return Err(TooOften(FORGET_EVERY));
        }
        self.limiter
            .check_key(&address)
            .map_err(|not_until| TooOften(not_until.wait_time_from(self.limiter.clock().now())))
    }

    /// Forgets addresses whose budget is full; whether there is room then.
    fn forget(&self) -> bool {
        let mut forgot = self.forgot.lock().unwrap_or_else(PoisonError::into_inner);
        if forgot.elapsed() >= FORGET_EVERY {
            self.limiter.retain_recent();
            *forgot = Instant::now();
        }
        self.limiter.len() < MOST_ADDRESSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_asks_too_often_waits_and_others_do_not() {
        let rates = Rates::new(1);
        let flood = Asker::One([10, 0, 0, 1].into());
        let refused = (0..1000).find_map(|_| rates.request(flood).err());
        assert!(refused.unwrap().0 <= Duration::from_secs(1));
        for _ in 0..1000 {
            assert_eq!(rates.request(Asker::Anybody), Ok(()));
        }
        assert_eq!(rates.request(Asker::One([10, 0, 0, 2].into())), Ok(()));
        assert_eq!(rates.try_secret(flood), Ok(()));
    }

    #[test]
    fn a_flood_of_addresses_takes_bounded_memory() {
        let rates = Rates::new(1);
        let mut refused = 0;
        for number in 0..60_000_u32 {
            let asker = Asker::One(std::net::Ipv4Addr::from_bits(number).into());
            refused += u32::from(rates.request(asker).is_err());
        }
        assert!(refused > 0);
        assert!(rates.0.requests.limiter.len() <= MOST_ADDRESSES);
        assert_eq!(rates.request(Asker::Anybody), Ok(()));
    }
}
