//! Certificates for one trial.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::harness::scene::{Outcome, Scene};

/// A certificate that vouches for others.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One whose certificate is the file `<name>.pem` of a scene.
    pub fn new(scene: &Scene, name: &str) -> Outcome<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(scene.file(&format!("{name}.pem")), made.pem())?;
        Ok(Self(made))
    }

    /// Makes a certificate for a host or a client, `<name>.pem`, and its key, `<name>.key`.
    pub fn vouch(&self, scene: &Scene, name: &str, host: &str) -> Outcome<()> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![host.to_string()])?;
        let made = params.signed_by(&key, &self.0)?;
        fs::write(scene.file(&format!("{name}.pem")), made.pem())?;
        fs::write(scene.file(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
}
