"""What a study is: its images, their quality, copies of them, and whose they are no longer."""
