"""Checks of data before training: `qth data FILE_OR_FOLDER`."""
