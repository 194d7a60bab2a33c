"""Why a run is stuck: pure rules over a session, and the engine that asks them."""
