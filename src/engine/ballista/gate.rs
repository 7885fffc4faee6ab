//! TLS before a port that has none.
//!
//! Ballista opens the port for tasks of an executor without TLS. With certificates it does so at a loopback address, and
//! whoever connects from outside comes through here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// How long whoever connects may take to show itself.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where a port lies that is reached at `outer` through a gate: an address of this machine, with the same number.
pub(super) fn behind(outer: IpAddr) -> IpAddr {
    match outer {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Ipv4Addr::new(127, 0, 0, 2).into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Passes on to `inner` what comes from those that have shown themselves, until it is dropped.
pub(super) async fn pass(listener: TcpListener, acceptor: TlsAcceptor, inner: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((outer, from)) => {
                    let acceptor = acceptor.clone();
                    connections.spawn(async move {
                        if let Err(error) = connect(outer, acceptor, inner).await {
                            log::debug!("a connection from {from} ended: {error}");
                        }
                    });
                }
                Err(error) => {
                    // Such as too many open files: it passes.
                    log::warn!("a connection can't be taken: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(
    outer: TcpStream,
    acceptor: TlsAcceptor,
    inner: SocketAddr,
) -> std::io::Result<()> {
    outer.set_nodelay(true)?;
    let mut outer = timeout(HANDSHAKE, acceptor.accept(outer)).await??;
    let mut inner = TcpStream::connect(inner).await?;
    inner.set_nodelay(true)?;
    copy_bidirectional(&mut outer, &mut inner).await?;
    Ok(())
}
