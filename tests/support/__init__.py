"""What the tests share: real servers, processes, a faulty proxy, waiting, the delivery checker, leak checks."""
