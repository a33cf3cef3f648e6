
s"
abc