//! The connections on which no call has been authenticated yet. Their number is bounded, in total and per address: beyond it, a
//! new connection closes the oldest one. So strangers who open connections and keep them cannot keep others out, who authenticate
//! within moments of connecting.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most connections of an attacker come from few addresses.
const SHARE_OF_ADDRESS: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct UnauthenticatedConnections(Arc<Mutex<Registry>>);

#[derive(Debug)]
struct Registry {
    max_total: usize,
    next_id: u64,
    /// Oldest first, because ids ascend.
    by_id: BTreeMap<u64, Entry>,
    by_network: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Entry {
    network: IpAddr,
    since: Instant,
    closing: CancellationToken,
}

impl UnauthenticatedConnections {
    pub(super) fn new(max_total: usize) -> Self {
        let max_total = max_total.max(SHARE_OF_ADDRESS);
        Self(Arc::new(Mutex::new(Registry {
            max_total,
            next_id: 0,
            by_id: BTreeMap::new(),
            by_network: HashMap::new(),
        })))
    }

    /// The slot is free once the guard is dropped or a call on the connection is authenticated.
    pub(super) fn admit(&self, address: IpAddr) -> ConnectionGuard {
        let network = network_of(address);
        let closing = CancellationToken::new();
        let mut registry = self.lock();
        let id = registry.next_id;
        registry.next_id += 1;
        registry.by_id.insert(id, Entry { network, since: Instant::now(), closing: closing.clone() });
        let max_of_network = registry.max_total / SHARE_OF_ADDRESS;
        let of_network = registry.by_network.entry(network).or_default();
        of_network.insert(id);
        if let Some(oldest) = of_network.first().copied().filter(|_| of_network.len() > max_of_network) {
            registry.close(oldest);
        }
        if registry.by_id.len() > registry.max_total {
            registry.close_oldest();
        }
        drop(registry);
        let slot = Slot { connections: self.clone(), id, closing, is_authenticated: AtomicBool::new(false) };
        ConnectionGuard(ConnectionSlot(Arc::new(slot)))
    }

    /// Frees a descriptor. Returns false if no connection is that old.
    pub(super) fn close_oldest(&self, min_age: Duration) -> bool {
        let mut registry = self.lock();
        let is_old = registry.by_id.values().next().is_some_and(|oldest| oldest.since.elapsed() >= min_age);
        is_old && registry.close_oldest()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn close_oldest(&mut self) -> bool {
        let oldest = self.by_id.keys().next().copied();
        oldest.is_some_and(|oldest| self.close(oldest))
    }

    fn close(&mut self, id: u64) -> bool {
        self.remove(id).map(|entry| entry.closing.cancel()).is_some()
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.by_id.remove(&id)?;
        if let Some(of_network) = self.by_network.get_mut(&entry.network) {
            of_network.remove(&id);
            if of_network.is_empty() {
                self.by_network.remove(&entry.network);
            }
        }
        Some(entry)
    }
}

/// In the extensions of each request of a connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionSlot(Arc<Slot>);

#[derive(Debug)]
struct Slot {
    connections: UnauthenticatedConnections,
    id: u64,
    closing: CancellationToken,
    is_authenticated: AtomicBool,
}

impl ConnectionSlot {
    pub(super) fn is_authenticated(&self) -> bool {
        self.0.is_authenticated.load(Ordering::Relaxed)
    }

    /// From now on, the connection is not closed for others.
    pub(super) fn set_authenticated(&self) {
        if !self.0.is_authenticated.swap(true, Ordering::Relaxed) {
            self.0.connections.lock().remove(self.0.id);
        }
    }

    /// Completes when the connection has to close for a newer one.
    pub(super) async fn closing(&self) {
        self.0.closing.cancelled().await;
    }
}

/// Lives as long as the connection, which the requests may outlive.
#[derive(Debug)]
pub(super) struct ConnectionGuard(pub(super) ConnectionSlot);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let slot = &self.0.0;
        slot.connections.lock().remove(slot.id);
    }
}

/// A customer's network in IPv6 has 64 bits; within it, addresses are free.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closing(guard: &ConnectionGuard) -> bool {
        guard.0.0.closing.is_cancelled()
    }

    fn is_empty(connections: &UnauthenticatedConnections) -> bool {
        let registry = connections.lock();
        registry.by_id.is_empty() && registry.by_network.is_empty()
    }

    #[test]
    fn newest_connections_of_an_address_stay() {
        let connections = UnauthenticatedConnections::new(16);
        let address = "192.0.2.1".parse().unwrap();
        let guards: Vec<_> = (0..6).map(|_| connections.admit(address)).collect();
        assert_eq!(guards.iter().map(is_closing).collect::<Vec<_>>(), [true, true, false, false, false, false]);
        drop(guards);
        assert!(is_empty(&connections));
    }

    #[test]
    fn total_bound_closes_the_oldest_of_all() {
        let connections = UnauthenticatedConnections::new(8);
        let guards: Vec<_> = (0..10).map(|host| connections.admit(IpAddr::from([192, 0, 2, host]))).collect();
        assert_eq!(guards.iter().filter(|guard| is_closing(guard)).count(), 2);
        assert!(is_closing(&guards[0]) && is_closing(&guards[1]));
        assert!(!connections.close_oldest(Duration::from_mins(1)), "none is that old");
        assert!(connections.close_oldest(Duration::ZERO) && is_closing(&guards[2]));
    }

    #[test]
    fn authenticated_connections_do_not_count() {
        let connections = UnauthenticatedConnections::new(4);
        let address = "192.0.2.1".parse().unwrap();
        let authenticated = connections.admit(address);
        authenticated.0.set_authenticated();
        let strangers: Vec<_> = (0..3).map(|_| connections.admit(address)).collect();
        assert!(!is_closing(&authenticated) && authenticated.0.is_authenticated());
        assert_eq!(strangers.iter().map(is_closing).collect::<Vec<_>>(), [true, true, false]);
        drop(strangers);
        assert!(is_empty(&connections) && !connections.close_oldest(Duration::ZERO));
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let network = |address: &str| network_of(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:aaaa::1"), network("2001:db8:1:2:bbbb::2"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
