//! An honest Dataverse and Entra over real HTTP on loopback, seeded, with limits and faults.
