"""The parts of `eventbus.subscriber.Subscriber`: what a client of the wire protocol decides, and what it does."""
